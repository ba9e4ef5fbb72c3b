"""Chooses the next token from the logits: settings, noise, penalties."""

import dataclasses
from typing import Any

import tensorflow as tf
from transformers import (
    TFLogitsProcessor,
    TFLogitsProcessorList,
    TFTemperatureLogitsWarper,
    TFTopKLogitsWarper,
    TFTopPLogitsWarper,
)

from configs.errors import UserError
from trainer.models.layers import noise


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the choice of tokens.

    Attributes:
      max_new_tokens: tokens to add; fewer where end-of-text comes first.
      temperature: divides the logits; 0 always takes the likeliest token.
      top_k: sample among so many of the likeliest tokens; 0: among all.
      top_p: sample among the likeliest tokens that hold this probability together.
      repetition_penalty: divides positive logits of tokens that the text contains, and
        multiplies negative ones.
      num_beams: above 1, beam search, without sampling.
    """

    max_new_tokens: int = 50
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    num_beams: int = 1

    def check(self, num_return_sequences: int) -> None:
        """Raises UserError where settings exclude each other."""
        samples = (self.temperature, self.top_k, self.top_p) != (1.0, 0, 1.0)
        if self.num_beams > 1 and samples:
            raise UserError(
                "`--num_beams` searches and does not sample: it excludes "
                "`--temperature`, `--top_k` and `--top_p`. Received: "
                f"{self.num_beams} beams and sampling. Leave either out."
            )
        at_most = self.num_beams if self.num_beams > 1 else int(self.greedy) or None
        if at_most and num_return_sequences > at_most:
            raise UserError(
                "`--num_return_sequences` must be at most `--num_beams`, and 1 with "
                "`--temperature=0`, which gives the same each time. Received: "
                f"{num_return_sequences}. Use {at_most}, or sample."
            )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0

    def processors(
        self, mask: tf.Tensor, seed: tf.Tensor, sample: tf.Tensor
    ) -> TFLogitsProcessorList:
        """Returns the processors of logits; the token with the highest score is taken.

        Args:
          mask: int32 [B, prompt length], 0 for padding.
          seed: int32 [].
          sample: int32 [B], the number of each row among its prompt's samples.
        """
        processors: list[Any] = []
        if self.repetition_penalty != 1.0:
            rows = tf.repeat(mask, self.num_beams, axis=0)
            processors.append(_PenalizeRepetition(self.repetition_penalty, rows))
        if self.greedy or self.num_beams > 1:
            return TFLogitsProcessorList(processors)
        if self.temperature != 1.0:
            processors.append(TFTemperatureLogitsWarper(self.temperature))
        if self.top_k:
            processors.append(TFTopKLogitsWarper(self.top_k))
        if self.top_p < 1.0:
            processors.append(TFTopPLogitsWarper(self.top_p))
        processors.append(Noise(seed, sample, tf.shape(mask)[1]))
        return TFLogitsProcessorList(processors)


class Noise(TFLogitsProcessor):
    """Adds Gumbel noise to the scores: their argmax is then a sample of the softmax.

    transformers' own sampling with a seed uses the same noise for every token. Here it
    depends on (seed, number of the sample, number of the new token).

    Args:
      seed: int32 [].
      sample: int32 [B], the number of each row among its prompt's samples.
      prompt_length: int32 [].
      temperature: float32 []; scales the noise, which is the same as dividing the
        scores. 0: no noise.

    Source: Maddison, Tarlow, Minka, "A* Sampling" (2014), section 2.
    """

    def __init__(
        self,
        seed: tf.Tensor,
        sample: tf.Tensor,
        prompt_length: tf.Tensor,
        temperature: tf.Tensor | float = 1.0,
    ):
        self._seed = seed
        self._sample = sample
        self._prompt_length = prompt_length
        self._temperature = temperature

    def __call__(
        self, input_ids: tf.Tensor, scores: tf.Tensor, cur_len: tf.Tensor
    ) -> tf.Tensor:
        token_number = cur_len - self._prompt_length
        keys = noise.row_keys(self._seed, token_number, self._sample)
        return scores + self._temperature * noise.gumbel(keys, scores.shape[1])


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
