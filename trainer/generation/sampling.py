"""Continues prompts from a seed.

A continuation depends on the model, the settings, the seed and the sample's number. It
does not depend on other prompts of the batch, nor on padding.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from transformers import (
    PreTrainedTokenizerFast,
    TFLogitsProcessorList,
    TFPreTrainedModel,
)

from configs.errors import UserError
from configs.progress import progress
from tfrecords import encoding
from trainer.generation import scores
from trainer.generation.continuation import Continuation
from trainer.generation.loop import Text, continue_rows
from trainer.generation.settings import Settings
from trainer.models.architecture import Architecture, Decoder

# It warns of an empty prompt, or of one that ends with end-of-text.
logging.getLogger("transformers.generation.tf_utils").setLevel(logging.ERROR)

# Tokens and length of each row, number of its sample, seed.
_SIGNATURE = [
    tf.TensorSpec(shape, tf.int32) for shape in ([None, None], [None], [None], [])
]


class Sampler:
    """Continues prompts with one model and one way of choosing tokens.

    Args:
      architecture: of the model.
      model: as `as_transformers` of the architecture returns it.
      tokenizer: of the model.
      settings: how tokens are chosen.
      batch_size: continuations that are generated at once.
      start_token: that documents of the dataset begin with; empty: end-of-text, which
        stands before them.
      padding_text: a document that stands before each prompt, and is not shown.
      begins_document: whether the start of a document stands before each prompt.
      shows_prompt: whether a continuation begins with its prompt.
    """

    def __init__(
        self,
        architecture: Architecture,
        model: TFPreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        settings: Settings,
        *,
        batch_size: int = 8,
        start_token: str = "",
        padding_text: str = "",
        begins_document: bool = False,
        shows_prompt: bool = True,
    ):
        self._model = model
        self._tokenizer = tokenizer
        self._start = self._end = tokenizer.eos_token_id
        if start_token:
            self._start = tokenizer.convert_tokens_to_ids(start_token)
        self._encode_texts = encoding.encoder(
            tokenizer.backend_tokenizer.to_str(), allow_special_tokens=True
        )
        self._prefix: list[int] = []
        if padding_text or begins_document:
            self._prefix = [*self._encode_texts([padding_text])[0], self._start]
        # A word is another token at the beginning of a text than behind a space.
        words = [w for word in settings.bad_words for w in (word, f" {word}")]
        self._bad_words = [ids for ids in self._encode_texts(words) if ids]
        self._settings = settings
        self._shows_prompt = shows_prompt
        # Beam search, and XLNet's generation, is transformers', which takes a prompt
        # at a time.
        self._add_tokens = None
        if architecture.decoder and settings.num_beams == 1:
            self._add_tokens = tf.function(
                functools.partial(self._continue_rows, architecture.decoder),
                input_signature=_SIGNATURE,
                autograph=False,
            )
        self._batch_size = batch_size if self._add_tokens else 1
        self._growing: list[Continuation] = []
        self._num_before = 0

    @property
    def num_generated(self) -> int:
        """New tokens so far."""
        return self._num_before + sum(len(text.new) for text in self._growing)

    def __call__(
        self, prompts: Sequence[str], num_return_sequences: int = 1, seed: int = 0
    ) -> list[list[str]]:
        """Returns the continuations of each prompt; each begins with the prompt.

        Raises:
          UserError: settings exclude each other, or a prompt and its new tokens exceed
            the model's positions.
        """
        self._settings.check(num_return_sequences)
        ids = [
            row
            for row in map(self._encode, prompts)
            for _ in range(num_return_sequences)
        ]
        growing = [self._continuation(row) for row in ids]
        samples = list(range(num_return_sequences)) * len(prompts)
        # Beam search returns all sequences of a prompt at once.
        together = (
            num_return_sequences if self._settings.num_beams > 1 else self._batch_size
        )
        # Rows of about the same length waste little on padding.
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        with progress("generate", len(ids), "text", delay=1, leave=False) as bar:
            for first in range(0, len(order), together):
                batch = order[first : first + together]
                self._grow(
                    [growing[index] for index in batch],
                    [ids[index] for index in batch],
                    [samples[index] for index in batch],
                    seed,
                )
                bar.update(len(batch))
        texts = [continuation.text for continuation in growing]
        return [
            texts[first : first + num_return_sequences]
            for first in range(0, len(texts), num_return_sequences)
        ]

    def stream(
        self,
        prompt: str,
        sample: int = 0,
        seed: int = 0,
        write: Callable[[str], object] = lambda text: print(text, end="", flush=True),
    ) -> None:
        """Writes what `__call__` returns for a prompt, piece by piece.

        Raises:
          UserError: as `__call__`; or beam search, whose text is not known before its
            end.
        """
        if self._settings.num_beams > 1:
            raise UserError("`--stream` excludes `--num_beams`. Leave either out.")
        ids = self._encode(prompt)
        self._grow([self._continuation(ids, write)], [ids], [sample], seed)

    def _encode(self, prompt: str) -> list[int]:
        (ids,) = self._encode_texts([prompt])
        ids = [*self._prefix, *ids] or [self._start]
        positions = self._model.config.n_positions
        if len(ids) + self._settings.max_new_tokens > positions:
            raise UserError(
                "The prompt, with its padding text, and the new tokens "
                "(`--max_new_tokens`; while training, `tracking.sample_tokens`) must "
                f"fit into the model's {positions} positions. Received: {len(ids)} and "
                f"{self._settings.max_new_tokens} tokens. Shorten either."
            )
        return ids

    def _continuation(
        self, ids: list[int], write: Callable[[str], object] | None = None
    ) -> Continuation:
        return Continuation(
            self._tokenizer,
            ids[len(self._prefix) :],
            self._settings.max_new_tokens,
            stop=self._settings.ends,
            shows_prompt=self._shows_prompt,
            write=write,
        )

    def _grow(
        self,
        growing: list[Continuation],
        ids: list[list[int]],
        samples: list[int],
        seed: int,
    ) -> None:
        """Adds tokens to continuations until all are finished."""
        self._num_before = self.num_generated
        self._growing = growing
        if self._add_tokens:
            width = max(map(len, ids))
            self._add_tokens(
                tf.constant([row + [self._end] * (width - len(row)) for row in ids]),
                tf.constant([len(row) for row in ids]),
                tf.constant(samples),
                tf.constant(seed),
            )
        else:
            self._grow_by_transformers(ids[0], samples[0], seed)

    def _continue_rows(
        self,
        create_decoder: Callable[[Any], Decoder],
        tokens: tf.Tensor,
        length: tf.Tensor,
        sample: tf.Tensor,
        seed: tf.Tensor,
    ) -> None:
        def is_finished(new: tf.Tensor) -> tf.Tensor:
            # Text, of which stop texts are a part, is the host's.
            finished = tf.numpy_function(self._receive, [new], tf.bool)
            return tf.ensure_shape(finished, [None])

        continue_rows(
            create_decoder(self._model),
            Text(tokens, length),
            max_new_tokens=self._settings.max_new_tokens,
            end=self._end,
            score=functools.partial(self._score, seed=seed, sample=sample),
            is_finished=is_finished,
        )

    def _receive(self, new: np.ndarray) -> np.ndarray:
        """Adds a token to each continuation; returns which are finished, bool [B]."""
        pairs = zip(self._growing, new.tolist(), strict=True)
        return np.array([continuation.add(token) for continuation, token in pairs])

    def _score(
        self,
        logits: tf.Tensor,
        text: Text,
        number: tf.Tensor,
        *,
        seed: tf.Tensor,
        sample: tf.Tensor,
    ) -> tf.Tensor:
        result = scores.score(
            logits,
            text,
            number,
            self._settings,
            end=self._end,
            bad_words=self._bad_words,
        )
        if self._settings.greedy or self._settings.num_beams > 1:
            return result
        return scores.add_noise(result, number, seed, sample)

    def _grow_by_transformers(self, ids: list[int], sample: int, seed: int) -> None:
        """Adds tokens to all sequences that beam search returns, or to one."""
        samples = tf.constant([sample])

        def choose(tokens: tf.Tensor, logits: tf.Tensor, length: int) -> tf.Tensor:
            is_streamed = length > len(ids) and self._settings.num_beams == 1
            if is_streamed and self._receive(tokens[:, length - 1].numpy()).all():
                # Nothing but end-of-text may follow, which ends the loop.
                return tf.math.log(tf.one_hot([self._end], logits.shape[1]))
            text = Text(tokens[:, :length], tf.fill([len(tokens)], length))
            number = tf.constant(length - len(ids))
            return self._score(
                logits, text, number, seed=tf.constant(seed), sample=samples
            )

        output: Any = self._model.generate(
            tf.constant([ids]),
            attention_mask=tf.ones([1, len(ids)], tf.int32),
            logits_processor=TFLogitsProcessorList([choose]),
            max_new_tokens=self._settings.max_new_tokens,
            do_sample=False,
            num_beams=self._settings.num_beams,
            num_return_sequences=len(self._growing),
            eos_token_id=self._end,
            pad_token_id=self._end,
        )
        rows = output.numpy()[:, len(ids) :].tolist()
        for continuation, new in zip(self._growing, rows, strict=True):
            for token in new[len(continuation.new) :]:
                continuation.add(token)
