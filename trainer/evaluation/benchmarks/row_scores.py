"""Scores rows of tokens: how likely each token is, and whether it is the likeliest.

Rows are padded to few lengths, so that few programs are compiled.

Dimensions: B rows of a replica, G rows of a batch over all replicas, T tokens.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
import tf_keras

from tfrecords import reader
from trainer.checkpoints.pretrained import Pretrained
from trainer.evaluation.benchmarks.rows import Row, Score
from trainer.evaluation.scoring import Scorer, scoring_step
from trainer.models.architecture import Architecture, Options
from trainer.models.layers import cross_entropy
from trainer.tasks import causal_lm
from trainer.tasks.task import Batch

# Rows are padded to a power of two, not below this, and to the positions at the most.
_SMALLEST_LENGTH = 64


def score(
    trained: Pretrained,
    strategy: tf.distribute.Strategy,
    rows: Sequence[Row],
    *,
    precision: str,
    batch_size: int,
    end_of_text_id: int,
) -> list[Score]:
    """Scores rows, in whatever order is fastest.

    Args:
      trained: the model, built under `strategy`.
      strategy: that scores.
      rows: of at most one token more than the model's positions.
      precision: of the matrix products.
      batch_size: rows that a replica scores at once.
      end_of_text_id: that a row may begin with.
    """
    global_batch_size = batch_size * strategy.num_replicas_in_sync
    task = dataclasses.replace(
        causal_lm.TASK, evaluation_sums=_batch_scores(global_batch_size)
    )
    step = scoring_step(trained, strategy, precision, task, end_of_text_id)
    by_length: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        length = _padded_length(len(row.tokens) - 1, trained.model.config.n_positions)
        by_length.setdefault(length, []).append(index)
    scores: dict[int, Score] = {}
    for length, indices in sorted(by_length.items()):
        table = _Rows([rows[index] for index in indices], length)
        scorer = Scorer(step, strategy, table, batch_size=batch_size)
        batches = list(scorer.batches())
        losses, is_likeliest = (
            np.concatenate([batch[name] for batch in batches])
            for name in ("losses", "is_likeliest")
        )
        for place, index in enumerate(indices):
            end = len(rows[index].tokens) - 1
            part = (place, slice(end - rows[index].num_scored, end))
            scores[index] = Score(-losses[part], is_likeliest[part] > 0)
    return [scores[index] for index in range(len(rows))]


def _padded_length(length: int, num_positions: int) -> int:
    return min(max(1 << (length - 1).bit_length(), _SMALLEST_LENGTH), num_positions)


class _Rows:
    """Rows of one length, with the interface of `tfrecords.windows.Windows`."""

    def __init__(self, rows: Sequence[Row], length: int):
        self.count = len(rows)
        self._tokens = np.zeros([self.count, length + 1], np.int32)
        for place, row in enumerate(rows):
            self._tokens[place, : len(row.tokens)] = row.tokens

    def batches(
        self,
        *,
        global_batch_size: int,
        batch_size: int,
        host_index: int = 0,
        num_hosts: int = 1,
    ) -> tf.data.Dataset:
        """Returns one host's batches; rows of zeros fill the last global batch.

        Returns:
          Elements {tokens: int32 [B, T + 1], place: int32 [B], of each row in its
          global batch}.
        """
        tokens = np.pad(self._tokens, [(0, -self.count % global_batch_size), (0, 0)])
        place = np.arange(len(tokens), dtype=np.int32) % global_batch_size
        return (
            tf.data.Dataset.from_tensor_slices({"tokens": tokens, "place": place})
            .shard(num_hosts, host_index)
            .batch(batch_size, drop_remainder=True)
            .with_options(reader.options())
        )


def _batch_scores(global_batch_size: int) -> Callable[..., dict[str, tf.Tensor]]:
    """Returns a `Task.evaluation_sums` that scores each token of a batch.

    Each replica adds its rows to a table of zeros: the sum over all replicas is the
    scores of all rows, on each of them.
    """

    def evaluation_sums(
        architecture: Architecture,
        model: tf_keras.Model,
        batch: Batch,
        options: Options,
    ) -> dict[str, tf.Tensor]:
        """Returns float32 [G, T] losses, and 1 where the token is the likeliest."""
        hidden = architecture.hidden_states(model, batch["tokens"][:, :-1], options)
        table = architecture.output_table(model)
        losses, is_likeliest = cross_entropy.token_scores(
            hidden, table, batch["tokens"][:, 1:]
        )
        columns = {"losses": losses, "is_likeliest": tf.cast(is_likeliest, tf.float32)}
        return {
            name: tf.math.unsorted_segment_sum(
                values, batch["place"], global_batch_size
            )
            for name, values in columns.items()
        }

    return evaluation_sums
