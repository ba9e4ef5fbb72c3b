"""Pure: streams of tokens -> fixed-length records.

The token files of all chunks, front to back, are one stream. Record r is its tokens
[r * sequence_length, (r + 1) * sequence_length), in whatever files they lie.
"""

from collections.abc import Callable

import numpy as np

from tfrecords import order


def num_records(num_tokens: int, sequence_length: int) -> int:
    """Returns the records that hold all tokens; the last one may be padded."""
    return -(-num_tokens // sequence_length)


def stored_order(count: int, *, seed: int, shuffle: bool) -> np.ndarray:
    """Returns which record of the stream stands where in the shards.

    The last record of the stream, the only one with padding, stays last: all others
    have the same size on disk.

    Returns:
      int64 [count].
    """
    if not shuffle:
        return np.arange(count)
    return np.append(order.permutation(count - 1, seed), count - 1)


def gather(
    read: Callable[[int, int, int], np.ndarray],
    starts: np.ndarray,
    record: int,
    sequence_length: int,
) -> np.ndarray:
    """Returns the tokens of one record; fewer than `sequence_length` only at the end.

    Args:
      read: (file, offset, count) -> tokens of that file from the offset: `count` of
        them, or what is there.
      starts: int64 [files]: place of each file's first token in the stream.
      record: index of the record.
      sequence_length: tokens of a record.
    """
    position = record * sequence_length
    missing = sequence_length
    parts = []
    # The last file that begins at or before the position.
    file = int(np.searchsorted(starts, position, side="right")) - 1
    while missing and file < len(starts):
        part = read(file, position - int(starts[file]), missing)
        parts.append(part)
        position += len(part)
        missing -= len(part)
        file += 1
    return np.concatenate(parts)
