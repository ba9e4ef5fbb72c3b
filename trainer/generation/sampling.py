"""Continues prompts through transformers' `generate`, compiled, from a seed.

What a prompt becomes depends on the model, the settings, the seed and the number of its
sample; not on the prompts beside it, nor on padding.
"""

import logging
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import tensorflow as tf
from transformers import (
    PreTrainedTokenizerBase,
    TextStreamer,
    TFGPT2LMHeadModel,
    TFLogitsProcessor,
    TFLogitsProcessorList,
)

from configs.errors import UserError
from trainer.generation.decoding import Settings

# Prompts are padded to a power of two, not below this, so that prompts of about the
# same length share one compiled program.
_SMALLEST_BUCKET = 16

# It takes a prompt that ends with end-of-text, or is empty, for padded on the right.
logging.getLogger("transformers.generation.tf_utils").setLevel(logging.ERROR)


class _Show(TFLogitsProcessor):
    """Hands each token to a streamer once the next one is looked for."""

    def __init__(self, streamer: TextStreamer, prompt_length: int):
        self._streamer = streamer
        self._prompt_length = prompt_length

    def __call__(
        self, input_ids: tf.Tensor, scores: tf.Tensor, cur_len: int
    ) -> tf.Tensor:
        if cur_len > self._prompt_length:
            self._streamer.put(input_ids[:, cur_len - 1].numpy())
        return scores


class Sampler:
    """Continues prompts with one model and one way of choosing tokens.

    Args:
      gpt2: the model.
      tokenizer: its tokenizer.
      settings: how tokens are chosen.
      batch_size: continuations that are made at once.
    """

    def __init__(
        self,
        gpt2: TFGPT2LMHeadModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: Settings,
        *,
        batch_size: int = 8,
    ):
        self._gpt2 = gpt2
        self._tokenizer = tokenizer
        self._settings = settings
        self._batch_size = batch_size
        # transformers' compiled loop cannot make a single token.
        self._made_tokens = max(settings.max_new_tokens, 2)
        self._room = gpt2.config.n_positions - self._made_tokens
        self._compiled = tf.function(self._generate, jit_compile=True)

    def __call__(
        self, prompts: Sequence[str], num_return_sequences: int = 1, seed: int = 0
    ) -> list[list[str]]:
        """Returns for each prompt its continuations, each with the prompt before it.

        Raises:
          UserError: settings exclude each other, or a prompt and its new tokens are
            more than the model's positions.
        """
        self._settings.check(num_return_sequences)
        # Beam search returns several of one row.
        num_samples = 1 if self._settings.num_beams > 1 else num_return_sequences
        per_row = num_return_sequences // num_samples
        rows = [
            (ids, sample)
            for ids in map(self._encode, prompts)
            for sample in range(num_samples)
        ]
        buckets: dict[int, list[int]] = {}
        for index, (ids, _) in enumerate(rows):
            buckets.setdefault(self._bucket(ids), []).append(index)
        size = min(self._batch_size, len(rows))
        texts: list[list[str]] = [[] for _ in rows]
        for bucket, members in buckets.items():
            for first in range(0, len(members), size):
                batch = members[first : first + size]
                made = self._continue(
                    [rows[index] for index in batch], bucket, size, per_row, seed
                )
                for index, found in zip(batch, made, strict=True):
                    texts[index] = found
        return [
            [text for found in texts[first : first + num_samples] for text in found]
            for first in range(0, len(rows), num_samples)
        ]

    def stream(self, prompt: str, sample: int = 0, seed: int = 0) -> None:
        """Prints what `__call__` returns for a prompt, token by token as it comes.

        Not compiled: the first token is there at once.

        Raises:
          UserError: as `__call__`, and for beam search, which has no text before its
            end.
        """
        if self._settings.num_beams > 1:
            raise UserError("`--stream` excludes `--num_beams`. Leave either out.")
        ids = self._encode(prompt)
        self._bucket(ids)
        streamer = TextStreamer(
            cast(Any, self._tokenizer),  # transformers names another class
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        streamer.put(np.array(ids))
        show = _Show(streamer, len(ids))
        mask = tf.ones([1, len(ids)], tf.int32)
        processors = self._settings.processors(
            mask, tf.constant(seed), tf.constant([sample])
        )
        output = self._gpt2.generate(
            tf.constant([ids], tf.int32),
            attention_mask=mask,
            logits_processor=TFLogitsProcessorList([show, *processors]),
            **self._arguments(self._settings.max_new_tokens),
        )
        streamer.put(output[:, -1].numpy())
        streamer.end()

    def _encode(self, prompt: str) -> list[int]:
        # A text begins where another has ended.
        return self._tokenizer(prompt)["input_ids"] or [self._tokenizer.eos_token_id]

    def _bucket(self, ids: list[int]) -> int:
        """Returns to how many tokens a prompt is padded."""
        if len(ids) > self._room:
            raise UserError(
                "The prompt and what follows (`--max_new_tokens`; of a run, "
                "`tracking.sample_tokens`) must fit into the model's "
                f"{self._gpt2.config.n_positions} positions. Received: {len(ids)} and "
                f"{self._settings.max_new_tokens} tokens. Shorten either."
            )
        bucket = max(_SMALLEST_BUCKET, 1 << (len(ids) - 1).bit_length())
        return min(bucket, self._room)

    def _continue(
        self,
        rows: list[tuple[list[int], int]],
        bucket: int,
        size: int,
        per_row: int,
        seed: int,
    ) -> list[list[str]]:
        """Continues rows of one bucket, filled up to `size` to share a program."""
        end = self._tokenizer.eos_token_id
        full = rows + rows[:1] * (size - len(rows))
        # Padding stands on the left: what is new follows the prompt's last token.
        output = self._compiled(
            tf.constant([[end] * (bucket - len(t)) + t for t, _ in full]),
            tf.constant([[0] * (bucket - len(t)) + [1] * len(t) for t, _ in full]),
            tf.constant([sample for _, sample in full]),
            tf.constant(seed),
            per_row,
        )
        made = output.numpy().reshape(size, per_row, -1)[:, :, bucket:]
        return [
            [self._text(ids, new.tolist()) for new in several]
            for (ids, _), several in zip(rows, made, strict=False)
        ]

    def _text(self, ids: list[int], new: list[int]) -> str:
        end = self._tokenizer.eos_token_id
        new = new[: self._settings.max_new_tokens]
        new = new[: new.index(end)] if end in new else new
        return self._tokenizer.decode(
            ids + new, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _generate(
        self,
        tokens: tf.Tensor,
        mask: tf.Tensor,
        sample: tf.Tensor,
        seed: tf.Tensor,
        num_return_sequences: int,
    ) -> tf.Tensor:
        return self._gpt2.generate(
            tokens,
            attention_mask=mask,
            logits_processor=self._settings.processors(mask, seed, sample),
            num_return_sequences=num_return_sequences,
            **self._arguments(self._made_tokens),
        )

    def _arguments(self, max_new_tokens: int) -> dict[str, Any]:
        end = self._tokenizer.eos_token_id
        return {
            "max_new_tokens": max_new_tokens,
            "do_sample": False,
            "num_beams": self._settings.num_beams,
            "eos_token_id": end,
            "pad_token_id": end,
        }
