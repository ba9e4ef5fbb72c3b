"""Chooses the next token from the logits: noise and penalties."""

import math
from typing import Any

import tensorflow as tf
from transformers import (
    TFLogitsProcessor,
    TFLogitsProcessorList,
    TFTemperatureLogitsWarper,
    TFTopKLogitsWarper,
    TFTopPLogitsWarper,
)

from trainer.generation.settings import Settings
from trainer.models.layers import noise


def processors(
    settings: Settings, mask: tf.Tensor, seed: tf.Tensor, sample: tf.Tensor
) -> TFLogitsProcessorList:
    """Returns the processors of logits; the token with the highest score is taken.

    Args:
      settings: of the choice.
      mask: int32 [B, prompt length], 0 for padding.
      seed: int32 [].
      sample: int32 [B], the number of each row among its prompt's samples.
    """
    chosen: list[Any] = []
    if settings.repetition_penalty != 1.0:
        rows = tf.repeat(mask, settings.num_beams, axis=0)
        chosen.append(_PenalizeRepetition(settings.repetition_penalty, rows))
    if settings.greedy or settings.num_beams > 1:
        return TFLogitsProcessorList(chosen)
    if settings.temperature != 1.0:
        chosen.append(TFTemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        chosen.append(TFTopKLogitsWarper(settings.top_k))
    if settings.top_p < 1.0:
        chosen.append(TFTopPLogitsWarper(settings.top_p))
    chosen.append(Noise(seed, sample, tf.shape(mask)[1]))
    return TFLogitsProcessorList(chosen)


class Noise(TFLogitsProcessor):
    """Adds Gumbel noise to the scores: their argmax is then a sample of the softmax.

    transformers' own sampling with a seed uses the same noise for every token. Here it
    depends on (seed, number of the sample, number of the new token).

    Args:
      seed: int32 [], or [B] for each row its own.
      sample: int32 [B], the number of each row among its prompt's samples.
      prompt_length: int32 [].
      scale: of the noise, float32 [] or [B, 1]. 0: none.

    Source: Maddison, Tarlow, Minka, "A* Sampling" (2014), section 2.
    """

    def __init__(
        self,
        seed: tf.Tensor,
        sample: tf.Tensor,
        prompt_length: tf.Tensor,
        scale: tf.Tensor | float = 1.0,
    ):
        self._seed = seed
        self._sample = sample
        self._prompt_length = prompt_length
        self._scale = scale

    def __call__(
        self, input_ids: tf.Tensor, scores: tf.Tensor, cur_len: tf.Tensor
    ) -> tf.Tensor:
        """Returns the scores with noise added, float32 [B, V]."""
        token_number = cur_len - self._prompt_length
        keys = noise.row_keys(self._seed, token_number, self._sample)
        return scores + self._scale * noise.gumbel(keys, scores.shape[1])


class KeepLikely(TFLogitsProcessor):
    """Divides scores by temperatures and drops unlikely tokens, by settings of rows.

    It does what transformers' processors do for a whole batch.

    Args:
      temperature: float32 [B]; 0 leaves the scores as they are.
      top_k: int32 [B]; 0: all tokens.
      top_p: float32 [B].
    """

    def __init__(self, temperature: tf.Tensor, top_k: tf.Tensor, top_p: tf.Tensor):
        self._divisor = tf.where(temperature > 0, temperature, 1.0)[:, None]
        self._top_k = top_k[:, None]
        self._top_p = top_p[:, None]

    def __call__(
        self, input_ids: tf.Tensor, scores: tf.Tensor, cur_len: tf.Tensor
    ) -> tf.Tensor:
        """Returns the scores, -infinity for tokens that are dropped, float32 [B, V]."""
        scores /= self._divisor
        drops = tf.reduce_any(self._top_k > 0) | tf.reduce_any(self._top_p < 1)
        return tf.cond(drops, lambda: self._drop(scores), lambda: scores)

    def _drop(self, scores: tf.Tensor) -> tf.Tensor:
        rank = tf.range(tf.shape(scores)[1])[None]
        ranked = tf.sort(scores, direction="DESCENDING")
        ranked = tf.where((rank < self._top_k) | (self._top_k == 0), ranked, -math.inf)
        before = tf.cumsum(tf.nn.softmax(ranked), axis=1, exclusive=True)
        stays = (ranked > -math.inf) & ((before < self._top_p) | (rank == 0))
        least = tf.reduce_min(tf.where(stays, ranked, math.inf), axis=1, keepdims=True)
        return tf.where(scores >= least, scores, -math.inf)


class _PenalizeRepetition(TFLogitsProcessor):
    """Makes tokens that the text contains less likely; padding does not count.

    Source: Keskar et al., "CTRL" (2019), section 4.1.
    """

    def __init__(self, penalty: float, mask: tf.Tensor):
        self._penalty = penalty
        self._mask = mask

    def __call__(
        self, input_ids: tf.Tensor, scores: tf.Tensor, cur_len: tf.Tensor
    ) -> tf.Tensor:
        num_rows, length = tf.shape(input_ids)[0], tf.shape(input_ids)[1]
        num_new = length - tf.shape(self._mask)[1]
        real = tf.concat([self._mask, tf.ones([num_rows, num_new], tf.int32)], axis=1)
        real *= tf.cast(tf.range(length) < cur_len, tf.int32)
        rows = tf.repeat(tf.range(num_rows)[:, None], length, axis=1)
        occurrences = tf.scatter_nd(
            tf.stack([rows, input_ids], axis=2), real, tf.shape(scores)
        )
        lowered = tf.where(scores > 0, scores / self._penalty, scores * self._penalty)
        return tf.where(occurrences > 0, lowered, scores)
