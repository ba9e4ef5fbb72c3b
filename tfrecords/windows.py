"""A split as sliding windows: each token is scored once, with a set context.

Window k holds tokens [k * stride, k * stride + context_length) of what is one text: the
whole stream of a packed split, or a document. Its first `context_length - stride`
tokens, which the window before has scored, are context alone.
"""

import functools

import numpy as np
import tensorflow as tf

from configs.errors import DataError
from tfrecords import reader, schema
from tfrecords.manifest import Manifest, num_windows

# The first token of a window that bears loss.
FIRST = "first"
_RECORDS_AT_ONCE = 64


class Windows:
    """All windows of a split.

    Args:
      data_dir: folder of the dataset.
      manifest: its manifest.
      split: name of the split.
      context_length: tokens of a window.
      stride: tokens from the start of a window to that of the next.

    Attributes:
      count: how many there are.

    Raises:
      DataError: the split cannot be cut into these windows.
    """

    def __init__(
        self,
        data_dir: str,
        manifest: Manifest,
        *,
        split: str,
        context_length: int,
        stride: int,
    ):
        # Read anew each time: where it is asked for is the device that reads.
        self._records = functools.partial(_records, data_dir, manifest, split)
        self._is_stream = manifest.mode == "packed" and split != "train"
        self._context_length = context_length
        self._stride = stride
        self.count = self._counted(manifest, split)

    def batches(
        self,
        *,
        global_batch_size: int,
        batch_size: int,
        host_index: int = 0,
        num_hosts: int = 1,
    ) -> tf.data.Dataset:
        """Returns one host's batches of a pass over all windows, in stored order.

        The last global batch is filled with windows of length 0, so that its shape is
        that of the others and no token is left out.

        Args:
          global_batch_size: windows of a batch over all hosts.
          batch_size: windows of one element.
          host_index: this host, below `num_hosts`.
          num_hosts: hosts that share each global batch.

        Returns:
          Elements {tokens: int32 [batch_size, context_length], length: int32
          [batch_size], first: int32 [batch_size]}.
        """
        cut = _of_stream if self._is_stream else _of_documents
        found = cut(self._records(), self._context_length, self._stride)
        filler = {
            schema.TOKENS: np.zeros(self._context_length, np.int32),
            schema.LENGTH: np.int32(0),
            FIRST: np.int32(1),
        }
        fillers = tf.data.Dataset.from_tensors(filler)
        return (
            found.take(self.count)
            .concatenate(fillers.repeat(-self.count % global_batch_size))
            .shard(num_hosts, host_index)
            .batch(batch_size, drop_remainder=True)
            .prefetch(tf.data.AUTOTUNE)
            .with_options(reader.options())
        )

    def _counted(self, manifest: Manifest, split: str) -> int:
        context_length, stride = self._context_length, self._stride
        length, found = manifest.sequence_length, manifest.split(split)
        if not 1 <= stride <= context_length:
            raise DataError(
                "The stride must be from 1 to the context length, or tokens would be "
                f"left out. Received: {stride} with a context length of "
                f"{context_length}."
            )
        if self._is_stream:
            return num_windows(found.tokens, context_length, stride)
        whole = context_length == length
        if manifest.mode == "packed":
            if whole and stride == length == found.stride:
                return found.num_records
            raise DataError(
                "The packed training records are in random order, and can only be "
                f"scored as they are: context length and stride {length}, where they "
                f"do not overlap. Received: {context_length} and {stride}, of records "
                f"that are {found.stride} apart. Score another split."
            )
        if context_length > length:
            raise DataError(
                f"A document's record has {length} tokens: the context length cannot "
                f"be more. Received: {context_length}."
            )
        if whole:
            return found.num_records
        each = self._records().map(
            lambda records: tf.reduce_sum(
                _num_windows(records[schema.LENGTH], context_length, stride)
            )
        )
        return int(each.reduce(np.int32(0), lambda a, b: a + b))


def _records(data_dir: str, manifest: Manifest, split: str) -> tf.data.Dataset:
    records = tf.data.TFRecordDataset(reader.paths(data_dir, manifest.split(split)))
    return records.batch(_RECORDS_AT_ONCE).map(
        lambda serialized: reader.parse(serialized, manifest),
        num_parallel_calls=tf.data.AUTOTUNE,
    )


def _of_stream(
    records: tf.data.Dataset, context_length: int, stride: int
) -> tf.data.Dataset:
    """Cuts the tokens into chunks of a stride; windows are chunks that follow."""
    num_chunks = -(-context_length // stride)

    def real_tokens(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        tokens = batch[schema.TOKENS]
        return tokens[tf.sequence_mask(batch[schema.LENGTH], tokens.shape[1])]

    def filled(chunk: tf.Tensor) -> dict[str, tf.Tensor]:
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

    chunks = records.map(real_tokens).rebatch(stride).map(filled)
    windows = chunks.window(num_chunks, shift=1).flat_map(join)
    return windows.enumerate().map(window, num_parallel_calls=tf.data.AUTOTUNE)


def _of_documents(
    records: tf.data.Dataset, context_length: int, stride: int
) -> tf.data.Dataset:
    def windows(record: dict[str, tf.Tensor]) -> tf.data.Dataset:
        number = _num_windows(record[schema.LENGTH], context_length, stride)
        index = tf.range(number)
        tokens = tf.pad(record[schema.TOKENS], [[0, context_length]])
        places = index[:, None] * stride + tf.range(context_length)
        left = record[schema.LENGTH] - index * stride
        return tf.data.Dataset.from_tensor_slices(
            {
                schema.TOKENS: tf.gather(tokens, places),
                schema.LENGTH: tf.minimum(left, context_length),
                FIRST: _first(index, context_length, stride),
            }
        )

    return records.unbatch().flat_map(windows)


def _num_windows(length: tf.Tensor, context_length: int, stride: int) -> tf.Tensor:
    """As `num_windows`, of int32 tensors."""
    return 1 + tf.maximum(-((context_length - length) // stride), 0)


def _first(index: tf.Tensor, context_length: int, stride: int) -> tf.Tensor:
    return tf.where(index == 0, 1, max(context_length - stride, 1))
