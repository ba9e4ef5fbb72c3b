"""Computes noise as a hash of the place where it is used.

The noise is the same on every device, compiled or not. TensorFlow's stateless random
numbers are not: for the same seed XLA generates other numbers.
"""

from collections.abc import Sequence

import tensorflow as tf

# Odd, and about 2^32 divided by the golden ratio: consecutive keys, such as those of
# rows and steps, end up far apart.
GOLDEN_GAMMA = 0x9E3779B9


def row_keys(seed: int | tf.Tensor, step: tf.Tensor, row: tf.Tensor) -> tf.Tensor:
    """Returns the key of each row at a step, uint32 [B].

    Args:
      seed: below 2**31.
      step: integer []. In training, the updates made so far.
      row: int32 [B]. In training, the index of each row in the global batch.
    """
    key = tf.cast(seed, tf.uint32)
    for part in (tf.cast(step, tf.uint32), tf.cast(row, tf.uint32)):
        key = mix_bits(key + (part + 1) * tf.constant(GOLDEN_GAMMA, tf.uint32))
    return key


def bits(start: tf.Tensor, shape: tf.TensorShape, strides: Sequence[int]) -> tf.Tensor:
    """Returns random uint32 of `shape`, [B, …], whose high bits are well mixed.

    Args:
      start: uint32 [B], the key of each row, plus the index of its first element.
      shape: of the result.
      strides: of the axes after the first.
    """
    return mix_bits(_count(start, shape, strides))


def gumbel(keys: tf.Tensor, num: int) -> tf.Tensor:
    """Samples the standard Gumbel distribution, float32 [B, num].

    Args:
      keys: uint32 [B].
      num: samples for each key.
    """
    high = tf.bitwise.right_shift(
        bits(keys, tf.TensorShape([None, num]), [1]), tf.constant(8, tf.uint32)
    )
    uniform = (tf.cast(high, tf.float32) + 0.5) * 2.0**-24
    return -tf.math.log(-tf.math.log(uniform))


def _count(
    start: tf.Tensor, shape: tf.TensorShape, strides: Sequence[int]
) -> tf.Tensor:
    """Numbers the elements of each row from `start`, uint32 [B] -> uint32 `shape`.

    The count is a sum of small ranges, the outermost first: one constant of that size
    would become part of the program, and partial sums of the inner axes would be kept.
    """
    count = tf.reshape(start, [-1] + [1] * (shape.rank - 1))
    for axis in range(1, shape.rank):
        along = tf.cast(tf.range(shape[axis]) * strides[axis - 1], tf.uint32)
        count += tf.reshape(along, [-1] + [1] * (shape.rank - 1 - axis))
    return count


def mix_bits(x: tf.Tensor) -> tf.Tensor:
    """Makes the high bits of uint32 `x` depend on all of its bits.

    Source: Wellons, "Prospecting for hash functions" (2018), the function lowbias32,
    without its last step, which carries the high bits down.
    """
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32))
        x *= tf.constant(factor, tf.uint32)
    return x
