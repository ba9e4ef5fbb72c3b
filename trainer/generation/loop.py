"""The loop that adds a token to each row, in one graph.

Dimensions: B rows, W columns of the prompts, V ids of the vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from trainer.models.architecture import Decoder

# Prompt tokens that are computed at once. Their scores against the whole cache are the
# largest tensor, and a longer part is no faster.
_PROMPT_PART = 128


class Text(NamedTuple):
    """The tokens so far: int32 [B, at least the longest], and how many, int32 [B]."""

    tokens: tf.Tensor
    length: tf.Tensor


def continue_rows(
    decoder: Decoder,
    prompts: Text,
    *,
    max_new_tokens: int,
    end: int,
    score: Callable[[tf.Tensor, Text, tf.Tensor], tf.Tensor],
    is_finished: Callable[[tf.Tensor], tf.Tensor],
) -> tf.Tensor:
    """Adds the token with the highest score to each row, until all are finished.

    Args:
      decoder: of the model.
      prompts: rows of at least one token, padded at their end to [B, W].
      max_new_tokens: the most tokens of a row.
      end: stands behind the new tokens of a row that is finished.
      score: (logits float32 [B, V], text, number of the token int32 []) -> scores
        float32 [B, V].
      is_finished: new tokens int32 [B] -> bool [B].

    Returns:
      The new tokens, int32 [B, max_new_tokens].
    """
    num_rows, width = tf.unstack(tf.shape(prompts.tokens))
    length = prompts.length
    cache = decoder.create_cache(num_rows, width + max_new_tokens)
    cache = _read_prompts(decoder, prompts.tokens[:, :-1], cache)
    rows = tf.range(num_rows)

    def add_token(
        number: tf.Tensor, tokens: tf.Tensor, finished: tf.Tensor, cache: Any
    ) -> tuple:
        place = length + number
        last = tf.gather(tokens, place[:, None] - 1, batch_dims=1)
        hidden, cache = decoder.extend(last, place - 1, cache)
        logits = decoder.logits(hidden[:, 0])
        scores = score(logits, Text(tokens, place), number)
        new = tf.argmax(scores, axis=1, output_type=tf.int32)
        new = tf.where(finished, end, new)
        tokens = tf.tensor_scatter_nd_update(tokens, tf.stack([rows, place], 1), new)
        return number + 1, tokens, finished | is_finished(new), cache

    room = tf.fill([num_rows, max_new_tokens], end)
    _, tokens, _, _ = tf.while_loop(
        lambda number, tokens, finished, cache: ~tf.reduce_all(finished),
        add_token,
        (0, tf.concat([prompts.tokens, room], 1), tf.fill([num_rows], False), cache),
        maximum_iterations=max_new_tokens,
        parallel_iterations=1,
    )
    return tf.gather(tokens, length[:, None] + tf.range(max_new_tokens), batch_dims=1)


def _read_prompts(decoder: Decoder, tokens: tf.Tensor, cache: Any) -> Any:
    """Returns the cache with all but the last token of the prompts."""
    num_rows, width = tf.unstack(tf.shape(tokens))

    def read_part(begin: tf.Tensor, cache: Any) -> tuple[tf.Tensor, Any]:
        part = tokens[:, begin : begin + _PROMPT_PART]
        _, cache = decoder.extend(part, tf.fill([num_rows], begin), cache)
        return begin + _PROMPT_PART, cache

    _, cache = tf.while_loop(
        lambda begin, cache: begin < width,
        read_part,
        (0, cache),
        parallel_iterations=1,
    )
    return cache
