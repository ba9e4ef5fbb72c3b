"""A stream of tokens -> records of fixed length: pure functions.

The token files of all chunks, one after the other, are one stream. Record r holds its
tokens [r * stride, r * stride + sequence_length), which may come from several files.
"""

import bisect
from collections.abc import Callable, Sequence

import numpy as np

from tfrecords import order


def stored_order(count: int, *, seed: int, shuffle: bool) -> np.ndarray:
    """Returns which record of the stream is stored at each place of the shards.

    The last record stays last: of a stream it is the only one with padding, and so the
    only one of another size on disk.

    Args:
      count: number of records.
      seed: of the shuffle.
      shuffle: if not, the order is that of the stream.

    Returns:
      int64 [count].
    """
    if not shuffle:
        return np.arange(count)
    return np.append(order.permutation(count - 1, seed), count - 1)


def gather(
    read: Callable[[int, int, int], np.ndarray],
    starts: Sequence[int],
    position: int,
    length: int,
) -> np.ndarray:
    """Returns tokens [position, position + length) of the stream; at its end, fewer.

    Args:
      read: (file, offset, count) -> at most `count` tokens of that file, fewer at its
        end.
      starts: position in the stream of each file's first token.
      position: of the first token.
      length: number of tokens.
    """
    missing = length
    parts = []
    # The last file that begins at or before the position.
    file = bisect.bisect_right(starts, position) - 1
    while missing and file < len(starts):
        part = read(file, position - starts[file], missing)
        if len(part) == length:
            return part
        parts.append(part)
        position += len(part)
        missing -= len(part)
        file += 1
    return np.concatenate(parts)
