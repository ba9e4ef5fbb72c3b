"""Scores rows of tokens: how likely each token is, and whether it is the likeliest.

Neighboring rows with the same context, such as the endings of a multiple choice, stand
behind it in one record and do not see each other: the context is computed once. Records
are padded to few lengths, so that few programs are compiled.

Dimensions: B records of a replica, G records of a batch over all replicas, T tokens.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf
import tf_keras

from tfrecords import reader
from trainer.checkpoints.pretrained import Pretrained
from trainer.evaluation.benchmarks.rows import Row, Score
from trainer.evaluation.scoring import Scorer, scoring_step
from trainer.models.architecture import Architecture, Options
from trainer.models.layers import cross_entropy
from trainer.models.layers.documents import Documents
from trainer.tasks import causal_lm
from trainer.tasks.task import Batch

# Records are padded to a power of two, from this to the model's positions.
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
      batch_size: records that a replica scores at once.
      end_of_text_id: that a row may begin with.
    """
    global_batch_size = batch_size * strategy.num_replicas_in_sync
    share = trained.architecture.knows_documents and trained.attention != "document"
    task = dataclasses.replace(
        causal_lm.TASK, evaluation_sums=_batch_scores(global_batch_size, share)
    )
    step = scoring_step(trained, strategy, precision, task, end_of_text_id)
    num_positions = trained.model.config.n_positions
    by_length: dict[int, list[range]] = {}
    for record in _share_contexts(rows, num_positions if share else 0):
        length = _num_tokens(rows[record.start : record.stop])
        length = _padded_length(length, num_positions)
        by_length.setdefault(length, []).append(record)
    scores: dict[int, Score] = {}
    for length, records in sorted(by_length.items()):
        table = _Records([rows[r.start : r.stop] for r in records], length)
        scorer = Scorer(step, strategy, table, batch_size=batch_size)
        batches = list(scorer.batches())
        losses, is_likeliest = (
            np.concatenate([batch[name] for batch in batches])
            for name in ("losses", "is_likeliest")
        )
        for place, record in enumerate(records):
            end = 0
            for index in record:
                begin, end = end, end + rows[index].num_scored
                part = (place, slice(begin, end))
                scores[index] = Score(-losses[part], is_likeliest[part] > 0)
    return [scores[index] for index in range(len(rows))]


def _share_contexts(rows: Sequence[Row], limit: int) -> Iterator[range]:
    """Yields the rows of each record: neighbors of one context, in `limit` tokens."""
    begin = 0
    for end in range(1, len(rows) + 1):
        if (
            end == len(rows)
            or rows[end].context != rows[begin].context
            or _num_tokens(rows[begin : end + 1]) > limit
        ):
            yield range(begin, end)
            begin = end


def _num_tokens(rows: Sequence[Row]) -> int:
    """Returns the tokens of a record; the last token of all is only predicted."""
    return len(rows[0].context) + sum(row.num_scored for row in rows) - 1


def _padded_length(length: int, num_positions: int) -> int:
    return min(max(1 << (length - 1).bit_length(), _SMALLEST_LENGTH), num_positions)


class _Records:
    """Records of one length, with the interface of `tfrecords.windows.Windows`.

    Args:
      records: the rows of each; they have the same context.
      length: T, of the records.
    """

    def __init__(self, records: Sequence[Sequence[Row]], length: int):
        self.count = len(records)
        self._columns = np.zeros([len(_COLUMNS), self.count, length], np.int32)
        for place, rows in enumerate(records):
            for column, values in zip(self._columns, _columns(rows), strict=True):
                values = values[:length]
                column[place, : len(values)] = values

    def batches(
        self,
        *,
        global_batch_size: int,
        batch_size: int,
        host_index: int = 0,
        num_hosts: int = 1,
    ) -> tf.data.Dataset:
        """Returns one host's batches; records of zeros fill the last global batch.

        Returns:
          Elements {place: int32 [B], of each record in its global batch}, and those of
          `_COLUMNS`, int32 [B, T].
        """
        rest = -self.count % global_batch_size
        columns = np.pad(self._columns, [(0, 0), (0, rest), (0, 0)])
        place = np.arange(self.count + rest, dtype=np.int32) % global_batch_size
        batch = {**dict(zip(_COLUMNS, columns, strict=True)), "place": place}
        return (
            tf.data.Dataset.from_tensor_slices(batch)
            .shard(num_hosts, host_index)
            .batch(batch_size, drop_remainder=True)
            .with_options(reader.options())
        )


# Of a record: its tokens; where the row of each begins; the tokens that are scored, and
# the places whose hidden states predict them.
_COLUMNS = ("tokens", "starts", "labels", "sources")


def _columns(rows: Sequence[Row]) -> tuple[list[int], ...]:
    """Returns the `_COLUMNS` of a record."""
    tokens = list(rows[0].context)
    starts, labels, sources = [0] * len(tokens), [], []
    for row in rows:
        begin, scored = len(tokens), row.tokens[-row.num_scored :]
        tokens += scored
        starts += [begin] * len(scored)
        labels += scored
        sources += [len(row.context) - 1, *range(begin, len(tokens) - 1)]
    return tokens, starts, labels, sources


def _batch_scores(
    global_batch_size: int, share: bool
) -> Callable[..., dict[str, tf.Tensor]]:
    """Returns a `Task.evaluation_sums` that scores each token of a batch.

    Each replica adds its records to a table of zeros: the sum over all replicas is the
    scores of all records, on each of them.

    Args:
      global_batch_size: G.
      share: whether records hold several rows.
    """

    def evaluation_sums(
        architecture: Architecture,
        model: tf_keras.Model,
        batch: Batch,
        options: Options,
    ) -> dict[str, tf.Tensor]:
        """Returns float32 [G, T] losses, and 1 where the token is the likeliest."""
        documents = {}
        if share:
            num_context = batch["sources"][:, 0] + 1
            documents = {"documents": Documents(batch["starts"], num_context)}
        hidden = architecture.hidden_states(
            model, batch["tokens"], options, **documents
        )
        table = architecture.output_table(model)
        losses, is_likeliest = cross_entropy.token_scores(
            tf.gather(hidden, batch["sources"], batch_dims=1), table, batch["labels"]
        )
        columns = {"losses": losses, "is_likeliest": tf.cast(is_likeliest, tf.float32)}
        return {
            name: tf.math.unsorted_segment_sum(
                values, batch["place"], global_batch_size
            )
            for name, values in columns.items()
        }

    return evaluation_sums
