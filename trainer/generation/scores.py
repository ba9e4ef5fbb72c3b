"""Turns logits into scores, whose largest is the next token: limits and noise.

Each function does what PyTorch's transformers does by the same name, for a batch whose
rows are padded at their end.

Dimensions: B rows, L columns of the text, V ids of the vocabulary.
"""

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from trainer.generation.loop import Text
from trainer.generation.settings import Settings
from trainer.models.layers import noise

# So many of the highest scores mostly hold `top_p`. To sort the whole vocabulary of 32
# rows takes as long as the network's own step (docs/performance.md).
_NUM_RANKED = 1024


def score(
    logits: tf.Tensor,
    text: Text,
    number: tf.Tensor,
    settings: Settings,
    *,
    end: int,
    bad_words: Sequence[Sequence[int]] = (),
) -> tf.Tensor:
    """Returns the scores of the tokens that may come next, and -infinity of others.

    Args:
      logits: float32 [B, V].
      text: prompts and new tokens.
      number: of the new token, int32 [].
      settings: of the choice.
      end: end-of-text, which `min_new_tokens` forbids.
      bad_words: sequences of tokens that must not appear.
    """
    scores = logits
    if settings.repetition_penalty != 1.0:
        scores = penalize_repetition(scores, text, settings.repetition_penalty)
    if settings.no_repeat_ngram_size:
        scores = forbid_repeated_ngrams(scores, text, settings.no_repeat_ngram_size)
    if bad_words:
        scores = forbid_sequences(scores, text, bad_words)
    if settings.min_new_tokens:
        early = tf.fill([tf.shape(scores)[0], 1], number < settings.min_new_tokens)
        scores = _forbid(scores, tf.fill(tf.shape(early), end), early)
    if settings.greedy or settings.num_beams > 1:
        return scores
    rows = tf.shape(scores)[:1]
    scores = keep_likely(
        scores,
        tf.fill(rows, settings.temperature),
        tf.fill(rows, settings.top_k),
        tf.fill(rows, settings.top_p),
    )
    if settings.min_p:
        scores = keep_above(scores, settings.min_p)
    if settings.typical_p < 1.0:
        scores = keep_typical(scores, settings.typical_p)
    return scores


def add_noise(
    scores: tf.Tensor,
    number: tf.Tensor,
    seed: tf.Tensor,
    sample: tf.Tensor,
    scale: tf.Tensor | float = 1.0,
) -> tf.Tensor:
    """Adds Gumbel noise to the scores: their argmax is then a sample of the softmax.

    The noise depends on (seed, number of the sample, number of the token) alone.

    Args:
      scores: float32 [B, V].
      number: of the new token, int32 [].
      seed: int32 [], or [B] for each row its own.
      sample: int32 [B], the number of each row among its prompt's samples.
      scale: of the noise, float32 [] or [B, 1]. 0: none.

    Source: Maddison, Tarlow, Minka, "A* Sampling" (2014), section 2.
    """
    keys = noise.row_keys(seed, number, sample)
    return scores + scale * noise.gumbel(keys, scores.shape[1])


def keep_likely(
    scores: tf.Tensor, temperature: tf.Tensor, top_k: tf.Tensor, top_p: tf.Tensor
) -> tf.Tensor:
    """Divides scores by temperatures and drops unlikely tokens, by settings of rows.

    Args:
      scores: float32 [B, V].
      temperature: float32 [B]; 0 leaves the scores as they are.
      top_k: int32 [B]; 0: all tokens.
      top_p: float32 [B].
    """
    scores /= tf.where(temperature > 0, temperature, 1.0)[:, None]
    top_k, top_p = top_k[:, None], top_p[:, None]

    def drop() -> tf.Tensor:
        vocabulary_size = scores.shape[1]
        num_ranked = tf.reduce_max(tf.where(top_k > 0, top_k, _NUM_RANKED))
        num_ranked = tf.minimum(num_ranked, vocabulary_size)
        least, is_enough = _lowest_score(scores, top_k, top_p, num_ranked)
        least = tf.cond(
            is_enough,
            lambda: least,
            lambda: _lowest_score(scores, top_k, top_p, vocabulary_size)[0],
        )
        return tf.where(scores >= least, scores, -math.inf)

    drops = tf.reduce_any(top_k > 0) | tf.reduce_any(top_p < 1)
    return tf.cond(drops, drop, lambda: scores)


def _lowest_score(
    scores: tf.Tensor, top_k: tf.Tensor, top_p: tf.Tensor, num_ranked: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the lowest score that stays in each row, and whether it is known.

    Args:
      scores: float32 [B, V].
      top_k: int32 [B, 1].
      top_p: float32 [B, 1].
      num_ranked: how many of the highest scores are sorted.

    Returns:
      float32 [B, 1], -infinity in rows without limits; and bool [], false where more
      scores have to be sorted.
    """
    rank = tf.range(num_ranked)[None]
    ranked, _ = tf.math.top_k(scores, num_ranked)
    ranked = tf.where((rank < top_k) | (top_k == 0), ranked, -math.inf)
    among = [tf.reduce_logsumexp(s, axis=1, keepdims=True) for s in (ranked, scores)]
    p = tf.exp(ranked - tf.where(top_k > 0, *among))
    before = tf.cumsum(p, axis=1, exclusive=True)
    # The sum of all may exceed 1 by rounding.
    stays = (before < top_p) | (top_p >= 1) | (rank == 0)
    stays &= ranked > -math.inf
    least = tf.reduce_min(tf.where(stays, ranked, math.inf), axis=1, keepdims=True)
    is_free = (top_k == 0) & (top_p >= 1)
    is_known = is_free | (top_k > 0) | (before + p >= top_p)[:, -1:]
    return tf.where(is_free, -math.inf, least), tf.reduce_all(is_known)


def keep_above(scores: tf.Tensor, min_p: float) -> tf.Tensor:
    """Drops tokens less likely than `min_p` times the likeliest.

    Source: Nguyen et al., "Turning Up the Heat: Min-p Sampling" (2024), section 3.
    """
    largest = tf.reduce_max(scores, axis=1, keepdims=True)
    return tf.where(scores >= largest + math.log(min_p), scores, -math.inf)


def keep_typical(scores: tf.Tensor, typical_p: float) -> tf.Tensor:
    """Keeps the tokens whose surprise is nearest to the expected one.

    The kept tokens hold the probability `typical_p` together.

    Source: Meister et al., "Locally Typical Sampling" (2022), section 4.
    """
    log_p = tf.nn.log_softmax(scores)
    entropy = -tf.reduce_sum(tf.math.multiply_no_nan(log_p, tf.exp(log_p)), 1)
    distance = tf.abs(-log_p - entropy[:, None])
    order = tf.argsort(distance, axis=1, stable=True)
    p = tf.gather(tf.exp(log_p), order, batch_dims=1)
    before = tf.cumsum(p, axis=1, exclusive=True)
    stays = (before < typical_p) & (p > 0)
    ranked = tf.gather(distance, order, batch_dims=1)
    most = tf.reduce_max(tf.where(stays, ranked, 0.0), axis=1, keepdims=True)
    return tf.where(distance <= most, scores, -math.inf)


def penalize_repetition(scores: tf.Tensor, text: Text, penalty: float) -> tf.Tensor:
    """Makes tokens that the text contains less likely; padding does not count.

    Source: Keskar et al., "CTRL" (2019), section 4.1.
    """
    occurs = _contains(scores, text.tokens, _is_text(text))
    lowered = tf.where(scores > 0, scores / penalty, scores * penalty)
    return tf.where(occurs, lowered, scores)


def forbid_repeated_ngrams(scores: tf.Tensor, text: Text, size: int) -> tf.Tensor:
    """Forbids tokens that would end a sequence of `size` tokens that was there before.

    Source: Paulus et al., "A Deep Reinforced Model for Abstractive Summarization"
    (2017), section 2.5.
    """
    last = _last_tokens(text, size - 1)  # (B, size - 1)
    # Column i is true where the `size` tokens that end at i begin as `last`.
    repeats = _is_text(text)
    for back in range(1, size):
        before = tf.pad(text.tokens, [[0, 0], [back, 0]], constant_values=-1)
        repeats &= before[:, :-back] == last[:, size - 1 - back, None]
    return _forbid(scores, text.tokens, repeats)


def forbid_sequences(
    scores: tf.Tensor, text: Text, sequences: Sequence[Sequence[int]]
) -> tf.Tensor:
    """Forbids the last token of each sequence whose others end the text.

    Args:
      scores: float32 [B, V].
      text: prompts and new tokens.
      sequences: each of at least one token.
    """
    longest = max(map(len, sequences))
    # Shorter sequences begin with -1, which any token equals.
    rows = np.array([[-1] * (longest - len(s)) + list(s) for s in sequences])
    begins, ends = rows[:, :-1].astype(np.int32), rows[:, -1].astype(np.int32)
    last = _last_tokens(text, longest - 1)[:, None]  # (B, 1, longest - 1)
    matches = tf.reduce_all((last == begins) | (begins == -1), axis=2)
    ids = tf.broadcast_to(ends, tf.shape(matches))
    return _forbid(scores, ids, matches)


def _is_text(text: Text) -> tf.Tensor:
    """Returns which columns hold tokens of the text, bool [B, L]."""
    return tf.range(tf.shape(text.tokens)[1]) < text.length[:, None]


def _last_tokens(text: Text, count: int) -> tf.Tensor:
    """Returns the last tokens of each row, int32 [B, count]; -2 before its first."""
    places = text.length[:, None] - count + tf.range(count)
    tokens = tf.gather(text.tokens, tf.maximum(places, 0), batch_dims=1)
    return tf.where(places >= 0, tokens, -2)


def _contains(scores: tf.Tensor, ids: tf.Tensor, where: tf.Tensor) -> tf.Tensor:
    """Returns which ids of the vocabulary are in a row where it counts, bool [B, V]."""
    rows = tf.broadcast_to(tf.range(tf.shape(ids)[0])[:, None], tf.shape(ids))
    places = tf.boolean_mask(tf.stack([rows, ids], axis=2), where)
    counts = tf.ones(tf.shape(places)[:1], tf.int32)
    return tf.scatter_nd(places, counts, tf.shape(scores)) > 0


def _forbid(scores: tf.Tensor, ids: tf.Tensor, where: tf.Tensor) -> tf.Tensor:
    """Sets the scores of ids [B, …] to -infinity where `where`, bool [B, …]."""
    return tf.where(_contains(scores, ids, where), -math.inf, scores)
