"""Cuts a split into sliding windows, for evaluation.

Window k holds tokens [k * stride, k * stride + context_length) of one text: the whole
stream of a packed split, or a document. Its first `context_length - stride` tokens were
scored by the window before and only provide context, so each token is scored once.
"""

import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from configs.errors import DataError
from tfrecords import reader, schema
from tfrecords.manifest import Manifest, num_windows

# Index of the first token of a window that is scored.
FIRST = "first"
_PARSE_BATCH_RECORDS = 64


class Windows:
    """All windows of a split.

    Attributes:
      count: number of windows.
    """

    def __init__(
        self,
        data_dir: str,
        manifest: Manifest,
        *,
        split: str,
        context_length: int,
        stride: int,
        labels: Sequence[str] = (),
    ):
        """Checks that the split can be cut, and counts the windows.

        Args:
          data_dir: folder of the dataset.
          manifest: its manifest.
          split: name of the split.
          context_length: tokens of a window.
          stride: tokens from the start of one window to that of the next.
          labels: names in the order of a model's classes; empty: the dataset's own.

        Raises:
          DataError: the split cannot be cut into these windows.
        """
        # Called for each dataset: it must be built on the host that reads it.
        self._records = functools.partial(_records, data_dir, manifest, split, labels)
        self._reads_stream = manifest.mode == "packed" and split != "train"
        self._labelled = manifest.labelled
        self._masked = manifest.masked
        self._context_length = context_length
        self._stride = stride
        self._check(manifest, split)
        self.count = self._count(manifest, split)

    @tf.autograph.experimental.do_not_convert  # it would read the code of each function
    def batches(
        self,
        *,
        global_batch_size: int,
        batch_size: int,
        host_index: int = 0,
        num_hosts: int = 1,
    ) -> tf.data.Dataset:
        """Returns one host's batches of a pass over all windows, in stored order.

        Windows of length 0 fill the last global batch, so that all batches have the
        same shape and no window is dropped.

        Args:
          global_batch_size: windows of a batch over all hosts.
          batch_size: windows of one element.
          host_index: index of this host.
          num_hosts: hosts that share each global batch.

        Returns:
          Elements {tokens: int32 [batch_size, context_length], length: int32
          [batch_size], first: int32 [batch_size]}; windows of labelled records also
          have label: int32 [batch_size], which all windows of a document share.
        """
        cut = _cut_stream if self._reads_stream else _cut_documents
        windows = cut(self._records(), self._context_length, self._stride)
        filler = {
            schema.TOKENS: np.zeros(self._context_length, np.int32),
            schema.LENGTH: np.int32(0),
            FIRST: np.int32(1),
        }
        if self._labelled:
            filler[schema.LABEL] = np.int32(0)
        if self._masked:
            filler[schema.MASK] = np.zeros(self._context_length, np.int32)
        fillers = tf.data.Dataset.from_tensors(filler)
        return (
            windows.take(self.count)
            .concatenate(fillers.repeat(-self.count % global_batch_size))
            .shard(num_hosts, host_index)
            .batch(batch_size, drop_remainder=True)
            .prefetch(tf.data.AUTOTUNE)
            .with_options(reader.options())
        )

    def _check(self, manifest: Manifest, split: str) -> None:
        context_length, stride = self._context_length, self._stride
        length = manifest.sequence_length
        if not 1 <= stride <= context_length:
            raise DataError(
                "The stride must be from 1 to the context length, or tokens would be "
                f"left out. Received: {stride} with a context length of "
                f"{context_length}."
            )
        if manifest.mode != "packed" and context_length > length:
            raise DataError(
                "The context length must be at most the length of a document's record, "
                f"{length} tokens. Received: {context_length}."
            )
        if manifest.mode == "packed" and not self._reads_stream:
            stored_stride = manifest.split(split).stride
            if not context_length == stride == length == stored_stride:
                raise DataError(
                    "Packed training records are in random order: they can only be "
                    f"scored with context length and stride {length}, and if they do "
                    f"not overlap. Received: {context_length} and {stride}, of records "
                    f"that are {stored_stride} apart. Score another split."
                )

    @tf.autograph.experimental.do_not_convert
    def _count(self, manifest: Manifest, split: str) -> int:
        context_length, stride = self._context_length, self._stride
        counts = manifest.split(split)
        if self._reads_stream:
            return num_windows(counts.tokens, context_length, stride)
        if context_length == manifest.sequence_length:
            return counts.num_records
        windows_per_batch = self._records().map(
            lambda records: tf.reduce_sum(
                _num_windows(records[schema.LENGTH], context_length, stride)
            )
        )
        return int(windows_per_batch.reduce(np.int32(0), lambda a, b: a + b))


def _records(
    data_dir: str, manifest: Manifest, split: str, labels: Sequence[str]
) -> tf.data.Dataset:
    shards = reader.paths(data_dir, manifest.split(split))
    records = tf.data.TFRecordDataset(shards, buffer_size=reader.LARGEST_BUFFER_BYTES)
    return records.batch(_PARSE_BATCH_RECORDS).map(
        lambda serialized: reader.parse(serialized, manifest, labels),
        num_parallel_calls=tf.data.AUTOTUNE,
    )


def _cut_stream(
    records: tf.data.Dataset, context_length: int, stride: int
) -> tf.data.Dataset:
    """Cuts the stream into chunks of `stride` tokens, and joins them to windows."""
    num_chunks = -(-context_length // stride)

    def real_tokens(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        tokens = batch[schema.TOKENS]
        return tokens[tf.sequence_mask(batch[schema.LENGTH], tokens.shape[1])]

    def pad(chunk: tf.Tensor) -> dict[str, tf.Tensor]:
        length = tf.size(chunk)
        return {
            schema.TOKENS: tf.pad(chunk, [[0, stride - length]]),
            schema.LENGTH: length,
        }

    def join(chunks: dict[str, tf.data.Dataset]) -> tf.data.Dataset:
        return tf.data.Dataset.zip(
            {name: part.batch(num_chunks) for name, part in chunks.items()}
        )

    def window(index: tf.Tensor, chunks: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        tokens = tf.reshape(chunks[schema.TOKENS], [-1])[:context_length]
        tokens = tf.pad(tokens, [[0, context_length - tf.size(tokens)]])
        length = tf.minimum(tf.reduce_sum(chunks[schema.LENGTH]), context_length)
        return {
            schema.TOKENS: tf.ensure_shape(tokens, [context_length]),
            schema.LENGTH: length,
            FIRST: _first(tf.cast(index, tf.int32), context_length, stride),
        }

    chunks = records.map(real_tokens).rebatch(stride).map(pad)
    windows = chunks.window(num_chunks, shift=1).flat_map(join)
    return windows.enumerate().map(window, num_parallel_calls=tf.data.AUTOTUNE)


def _cut_documents(
    records: tf.data.Dataset, context_length: int, stride: int
) -> tf.data.Dataset:
    def windows(record: dict[str, tf.Tensor]) -> tf.data.Dataset:
        count = _num_windows(record[schema.LENGTH], context_length, stride)
        index = tf.range(count)
        tokens = tf.pad(record[schema.TOKENS], [[0, context_length]])
        positions = index[:, None] * stride + tf.range(context_length)
        remaining = record[schema.LENGTH] - index * stride
        features = {
            schema.TOKENS: tf.gather(tokens, positions),
            schema.LENGTH: tf.minimum(remaining, context_length),
            FIRST: _first(index, context_length, stride),
        }
        if schema.MASK in record:
            mask = tf.pad(record[schema.MASK], [[0, context_length]])
            features[schema.MASK] = tf.gather(mask, positions)
        if schema.LABEL in record:
            features[schema.LABEL] = tf.repeat(record[schema.LABEL], count)
        return tf.data.Dataset.from_tensor_slices(features)

    return records.unbatch().flat_map(windows)


def _num_windows(length: tf.Tensor, context_length: int, stride: int) -> tf.Tensor:
    """Returns `num_windows` of int32 tensors."""
    return 1 + tf.maximum(-((context_length - length) // stride), 0)


def _first(index: tf.Tensor, context_length: int, stride: int) -> tf.Tensor:
    return tf.where(index == 0, 1, max(context_length - stride, 1))
