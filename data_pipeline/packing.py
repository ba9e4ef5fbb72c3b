"""Pure: streams of tokens -> fixed-length records.

The token files of all chunks, front to back, are one stream. Record r is its tokens
[r * stride, r * stride + sequence_length), in whatever files they lie.
"""

import bisect
from collections.abc import Callable, Sequence

import numpy as np

from tfrecords import order


def stored_order(count: int, *, seed: int, shuffle: bool) -> np.ndarray:
    """Returns which record of the stream stands where in the shards.

    The last record of the stream, the only packed one with padding, stays last: all
    others have the same size on disk.

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
    """Returns a stretch of the stream; fewer than `length` tokens only at its end.

    Args:
      read: (file, offset, count) -> tokens of that file from the offset: `count` of
        them, or what is there.
      starts: place of each file's first token in the stream.
      position: place in the stream where the stretch begins.
      length: tokens of the stretch.
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
