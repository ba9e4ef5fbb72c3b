"""Dropout whose noise is a function of the record, not of where it is computed.

The noise of an element is a hash of (seed, step, row of the global batch, place in the
network, index of the element). So it is the same for any number of replicas and
accumulation steps, and a stopped run finds it again. It is a few integer operations on
an index, which XLA computes where they are used, forwards and backwards, where random
numbers would be stored.
"""

import dataclasses
import math
import operator
from collections.abc import Callable, Sequence

import tensorflow as tf

from trainer.models.layers.noise import SPREAD, bits, mix
from trainer.models.layers.recompute import hold


@dataclasses.dataclass(frozen=True, eq=False)
class Dropout:
    """Drops elements of each row of a batch.

    Attributes:
      rate: the share of elements that become 0. The others are scaled by 1/(1 - rate).
      keys: uint32 [B], of `noise.row_keys`; none where `rate` is 0.
      compiled: whether XLA compiles this.
    """

    rate: float = 0.0
    keys: tf.Tensor | tuple[()] = ()
    compiled: bool = False

    def __call__(
        self,
        x: tf.Tensor,
        site: int,
        whole: Sequence[int] = (),
        begin: Sequence[int] = (),
    ) -> tf.Tensor:
        """Applies dropout to `x`, [B, …], at a place of the network, `site`.

        Args:
          x: all elements of this site, or a part of them.
          site: its number.
          whole: where `x` is a part, the shape of all elements of a row.
          begin: the indices in `whole` of the part's first element.
        """
        if not self.rate:
            return x
        whole = whole or x.shape[1:]
        strides = [math.prod(whole[axis + 1 :]) for axis in range(len(whole))]
        offset = sum(map(operator.mul, begin, strides))

        @tf.custom_gradient
        def call(x: tf.Tensor, keys: tf.Tensor) -> tuple[tf.Tensor, Callable]:
            def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
                # Other keys to XLA, so that it does not keep the noise until here.
                (held,), _ = hold([keys], [], self.compiled)
                return self._drop(upstream, held, site, strides, offset), None

            return self._drop(x, keys, site, strides, offset), gradient

        return call(x, self.keys)

    def _drop(
        self,
        x: tf.Tensor,
        keys: tf.Tensor,
        site: int,
        strides: Sequence[int],
        offset: int,
    ) -> tf.Tensor:
        keys = mix(keys + tf.constant(site * SPREAD % 2**32, tf.uint32)) + offset
        kept = bits(keys, x.shape, strides) >= round(self.rate * 2**32)
        # In bfloat16, 1 / 0.9 would be 1.109, and the mean no more what it was.
        scaled = tf.cast(tf.cast(x, tf.float32) / (1 - self.rate), x.dtype)
        return tf.where(kept, scaled, tf.zeros([], x.dtype))


NO_DROPOUT = Dropout()
