"""Continues prompts through transformers' `generate`, compiled, from a seed."""

from typing import Any

import tensorflow as tf
from transformers import (
    PreTrainedTokenizerBase,
    TFGPT2LMHeadModel,
    TFLogitsProcessor,
    TFLogitsProcessorList,
    TFTemperatureLogitsWarper,
    TFTopKLogitsWarper,
    TFTopPLogitsWarper,
)

from configs.schema import ConfigError

# Prompts are padded to a power of two, not below this, so that prompts of about the
# same length share one compiled program.
_SMALLEST_BUCKET = 16


class _Sample(TFLogitsProcessor):
    """Adds Gumbel noise to the scores: their argmax is then a sample of the softmax.

    transformers' own sampling uses the same noise for every token where it is given a
    seed; here the noise depends on (seed, position, row).

    Source: Maddison, Tarlow, Minka, "A* Sampling" (2014), section 2.
    """

    def __init__(self, seed: int):
        self._seed = seed

    def __call__(
        self, input_ids: tf.Tensor, scores: tf.Tensor, cur_len: tf.Tensor
    ) -> tf.Tensor:
        seed = tf.random.experimental.stateless_fold_in([self._seed, 0], cur_len)
        uniform = tf.random.stateless_uniform(
            tf.shape(scores), seed, minval=1e-20, maxval=1.0
        )
        return scores - tf.math.log(-tf.math.log(uniform))


class Sampler:
    """Continues prompts with one model and one set of parameters.

    Args:
      gpt2: the model.
      tokenizer: its tokenizer.
      max_new_tokens: tokens to add, fewer where end-of-text comes first.
      temperature: 0 takes the likeliest token each time.
      top_k: sample among so many of the likeliest; 0: all.
      top_p: sample among the likeliest that hold this much probability.
    """

    def __init__(
        self,
        gpt2: TFGPT2LMHeadModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int = 50,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ):
        self._gpt2 = gpt2
        self._tokenizer = tokenizer
        self._max_new_tokens = max_new_tokens
        # transformers' compiled loop cannot make a single token.
        self._made_tokens = max(max_new_tokens, 2)
        self._warpers: list[Any] = []
        if temperature not in (0.0, 1.0):
            self._warpers.append(TFTemperatureLogitsWarper(temperature))
        if top_k:
            self._warpers.append(TFTopKLogitsWarper(top_k))
        if top_p < 1.0:
            self._warpers.append(TFTopPLogitsWarper(top_p))
        self._greedy = temperature == 0.0
        self._compiled = tf.function(self._generate, jit_compile=True)

    def __call__(self, prompts: list[str], seed: int = 0) -> list[str]:
        """Returns each prompt with its continuation.

        Raises:
          ConfigError: prompt and new tokens are more than the model's positions.
        """
        end = self._tokenizer.eos_token_id
        # A text begins where another has ended.
        encoded = [self._tokenizer(prompt)["input_ids"] or [end] for prompt in prompts]
        longest = max(map(len, encoded))
        room = self._gpt2.config.n_positions - self._made_tokens
        if longest > room:
            raise ConfigError(
                "The prompt and `--max_new_tokens` must fit into the model's "
                f"{self._gpt2.config.n_positions} positions. Received: {longest} and "
                f"{self._max_new_tokens}. Shorten either."
            )
        bucket = _SMALLEST_BUCKET
        while bucket < longest:
            bucket *= 2
        bucket = min(bucket, room)
        # Padding stands on the left: what is new follows the prompt's last token.
        padded = [[end] * (bucket - len(ids)) + ids for ids in encoded]
        mask = [[0] * (bucket - len(ids)) + [1] * len(ids) for ids in encoded]
        output = self._compiled(
            tf.constant(padded, tf.int32),
            tf.constant(mask, tf.int32),
            tf.constant(seed),
        ).numpy()
        texts = []
        for row, ids in zip(output, encoded, strict=True):
            new = row[bucket:].tolist()[: self._max_new_tokens]
            new = new[: new.index(end)] if end in new else new
            texts.append(self._tokenizer.decode(ids + new, skip_special_tokens=True))
        return texts

    def _generate(
        self, tokens: tf.Tensor, mask: tf.Tensor, seed: tf.Tensor
    ) -> tf.Tensor:
        processors = [] if self._greedy else [*self._warpers, _Sample(seed)]
        end = self._tokenizer.eos_token_id
        return self._gpt2.generate(
            tokens,
            attention_mask=mask,
            max_new_tokens=self._made_tokens,
            do_sample=False,
            logits_processor=TFLogitsProcessorList(processors),
            eos_token_id=end,
            pad_token_id=end,
        )
