"""Predicts the labels of texts with a classifier."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from configs.errors import UserError
from configs.progress import progress
from tfrecords import encoding
from trainer.checkpoints.pretrained import Pretrained
from trainer.models import classifier, create
from trainer.tasks import classification


class Predictor:
    """Predicts labels, in float32.

    Args:
      trained: a classifier.
      batch_size: texts at once.

    Raises:
      UserError: the model is not a classifier.
    """

    def __init__(self, trained: Pretrained, *, batch_size: int):
        self.labels = classifier.labels_of(trained.model.config)
        if not self.labels:
            raise UserError(
                "`trainer.predict` needs a classifier. Received: a language model, "
                f"{trained.name}. Use `trainer.generate`, or train with "
                "`training.task=classification`."
            )
        tokenizer = create.load_tokenizer(
            trained.architecture, trained.tokenizer, trained.model
        )
        self._encode = encoding.encoder(
            tokenizer.backend_tokenizer.to_str(), allow_special_tokens=False
        )
        limits = (trained.sequence_length, tokenizer.model_max_length)
        positions = trained.model.config.n_positions
        self.max_tokens = min([positions, *filter(None, limits)])
        self._trained = trained
        self._batch_size = batch_size
        self._logits = tf.function(self._compute, autograph=False)

    def __call__(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Returns of each text its label, the probabilities of all, and its tokens.

        A longer text is cut after `max_tokens`, as in training.

        Raises:
          UserError: a text is empty.
        """
        rows, size = self._encode(texts), self._batch_size
        if empty := [number for number, row in enumerate(rows, 1) if not row]:
            raise UserError(
                "Each text must hold a token. Received: nothing in text "
                f"{empty[0]} of {len(rows)}. Leave it out."
            )
        longest = min(max(map(len, rows)), self.max_tokens)
        shares: list[np.ndarray] = []
        with progress("predict", len(rows), "text", delay=1, leave=False) as bar:
            for start in range(0, len(rows), size):
                batch = rows[start : start + size]
                # The last batch has the shape of the others.
                shares += [*self._shares(batch, longest)]
                bar.update(len(batch))
        return [self._result(*pair) for pair in zip(rows, shares, strict=True)]

    def _shares(self, rows: list[list[int]], num_tokens: int) -> np.ndarray:
        """Returns the probabilities of each row's labels."""
        tokens = np.zeros([self._batch_size, num_tokens], np.int32)
        length = np.ones(self._batch_size, np.int32)
        for index, row in enumerate(rows):
            length[index] = len(row[:num_tokens])
            tokens[index, : length[index]] = row[:num_tokens]
        return self._logits(tokens, length).numpy()[: len(rows)]

    def _compute(self, tokens: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
        batch = {"tokens": tokens, "length": length}
        trained = self._trained
        values = classification.logits(trained.architecture, trained.model, batch)
        return tf.nn.softmax(values)

    def _result(self, row: list[int], shares: np.ndarray) -> dict[str, Any]:
        return {
            "label": self.labels[int(np.argmax(shares))],
            "probabilities": dict(zip(self.labels, shares.tolist(), strict=True)),
            "tokens": len(row),
            "truncated_tokens": max(len(row) - self.max_tokens, 0),
        }
