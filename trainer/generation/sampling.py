"""Continues prompts through transformers' `generate`, compiled, from a seed.

A continuation depends on the model, the settings, the seed and the sample's number. It
does not depend on other prompts of the batch, nor on padding.
"""

import logging
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import tensorflow as tf
from transformers import (
    PreTrainedTokenizerFast,
    TextStreamer,
    TFLogitsProcessor,
    TFLogitsProcessorList,
    TFPreTrainedModel,
)

from configs.errors import UserError
from configs.progress import progress
from tfrecords import encoding
from trainer.generation import decoding
from trainer.generation.settings import Settings
from trainer.runtime import strategy as strategies

# Prompts are padded to a power of two, not below this, so that prompts of about the
# same length share one compiled program.
_SMALLEST_BUCKET = 16

# It warns of padding on the right where a prompt is empty or ends with end-of-text.
logging.getLogger("transformers.generation.tf_utils").setLevel(logging.ERROR)


class _StreamTokens(TFLogitsProcessor):
    """Hands each token to a streamer when the next token is chosen."""

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
      model: has transformers' `generate`.
      tokenizer: of the model.
      settings: how tokens are chosen.
      batch_size: continuations that are generated at once.
      start_token: that documents of the dataset begin with; empty: end-of-text, which
        stands before them.
      padding_text: a document that stands before each prompt, and is not shown.
    """

    def __init__(
        self,
        model: TFPreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        settings: Settings,
        *,
        batch_size: int = 8,
        start_token: str = "",
        padding_text: str = "",
    ):
        self._model = model
        self._tokenizer = tokenizer
        self._start = tokenizer.eos_token_id
        if start_token:
            self._start = tokenizer.convert_tokens_to_ids(start_token)
        self._encode_texts = encoding.encoder(
            tokenizer.backend_tokenizer.to_str(), allow_special_tokens=True
        )
        self._prefix: list[int] = []
        if padding_text:
            self._prefix = [*self._encode_texts([padding_text])[0], self._start]
        self._settings = settings
        # XLNet's `generate` takes no padding, and cannot be compiled.
        self._pads = model.supports_xla_generation
        self._batch_size = batch_size if self._pads else 1
        # transformers' compiled loop cannot generate a single token.
        self._num_generated = max(settings.max_new_tokens, 2)
        self._max_prompt_tokens = model.config.n_positions - self._num_generated
        # transformers' loop in a graph needs XLA. Without it, nothing is compiled.
        self._generate_tokens = self._generate
        if self._pads and strategies.compiles_on_host():
            self._generate_tokens = tf.function(self._generate, jit_compile=True)

    def __call__(
        self, prompts: Sequence[str], num_return_sequences: int = 1, seed: int = 0
    ) -> list[list[str]]:
        """Returns the continuations of each prompt; each begins with the prompt.

        Raises:
          UserError: settings exclude each other, or a prompt and its new tokens exceed
            the model's positions.
        """
        self._settings.check(num_return_sequences)
        # Beam search returns several sequences of one row.
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
        with progress("generate", len(rows), "text", delay=1, leave=False) as bar:
            for bucket, members in buckets.items():
                for first in range(0, len(members), size):
                    batch = members[first : first + size]
                    batch_rows = [rows[index] for index in batch]
                    generated = self._continue(batch_rows, bucket, size, per_row, seed)
                    for index, row_texts in zip(batch, generated, strict=True):
                        texts[index] = row_texts
                    bar.update(len(batch))
        return [
            [text for row in texts[first : first + num_samples] for text in row]
            for first in range(0, len(rows), num_samples)
        ]

    def stream(self, prompt: str, sample: int = 0, seed: int = 0) -> None:
        """Prints what `__call__` returns for a prompt, token by token.

        Nothing is compiled, so that the first token appears at once.

        Raises:
          UserError: as `__call__`; or beam search, whose text is not known before its
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
        streamer.put(np.array(ids[len(self._prefix) :] or ids[-1:]))
        stream_tokens = _StreamTokens(streamer, len(ids))
        mask = tf.ones([1, len(ids)], tf.int32)
        processors = decoding.processors(
            self._settings, mask, tf.constant(seed), tf.constant([sample])
        )
        output = self._model.generate(
            tf.constant([ids], tf.int32),
            attention_mask=mask,
            logits_processor=TFLogitsProcessorList([stream_tokens, *processors]),
            **self._arguments(self._settings.max_new_tokens),
        )
        streamer.put(output[:, -1].numpy())
        streamer.end()

    def _encode(self, prompt: str) -> list[int]:
        (ids,) = self._encode_texts([prompt])
        return [*self._prefix, *ids] or [self._start]

    def _bucket(self, ids: list[int]) -> int:
        """Returns the length that a prompt is padded to."""
        if len(ids) > self._max_prompt_tokens:
            raise UserError(
                "The prompt, with its padding text, and the new tokens "
                "(`--max_new_tokens`; while training, `tracking.sample_tokens`) must "
                "fit into the model's "
                f"{self._model.config.n_positions} positions. Received: {len(ids)} and "
                f"{self._settings.max_new_tokens} tokens. Shorten either."
            )
        if not self._pads:
            return len(ids)
        bucket = max(_SMALLEST_BUCKET, 1 << (len(ids) - 1).bit_length())
        return min(bucket, self._max_prompt_tokens)

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
        # Padding is on the left, so that new tokens follow the prompt's last token.
        output = self._generate_tokens(
            tf.constant([[end] * (bucket - len(t)) + t for t, _ in full]),
            tf.constant([[0] * (bucket - len(t)) + [1] * len(t) for t, _ in full]),
            tf.constant([sample for _, sample in full]),
            tf.constant(seed),
            per_row,
        )
        new_ids = output.numpy().reshape(size, per_row, -1)[:, :, bucket:]
        return [
            [self._decode(ids, new.tolist()) for new in sequences]
            for (ids, _), sequences in zip(rows, new_ids, strict=False)
        ]

    def _decode(self, ids: list[int], new: list[int]) -> str:
        end = self._tokenizer.eos_token_id
        new = new[: self._settings.max_new_tokens]
        new = new[: new.index(end)] if end in new else new
        return self._tokenizer.decode(
            ids[len(self._prefix) :] + new,
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )

    def _generate(
        self,
        tokens: tf.Tensor,
        mask: tf.Tensor,
        sample: tf.Tensor,
        seed: tf.Tensor,
        num_return_sequences: int,
    ) -> tf.Tensor:
        return self._model.generate(
            tokens,
            attention_mask=mask,
            logits_processor=decoding.processors(self._settings, mask, seed, sample),
            num_return_sequences=num_return_sequences,
            **self._arguments(self._num_generated),
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
