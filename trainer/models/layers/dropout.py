"""Dropout whose noise depends on the record, not on where it is computed.

The noise of an element is a hash of (seed, step, row of the global batch, site in the
network, index of the element). So it is the same for any number of replicas and
accumulation steps, and after a resume. The hash is a few integer operations on an
index. XLA computes them where they are used, in the forward and the backward pass;
stored random numbers would take memory.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence

import tensorflow as tf

from trainer.models.layers.noise import GOLDEN_GAMMA, bits, mix_bits
from trainer.models.layers.recompute import fuse, optimization_barrier


@dataclasses.dataclass(frozen=True, eq=False)
class Dropout:
    """Drops elements of each row of a batch.

    Attributes:
      rate: share of the elements that become 0. The others are scaled by 1/(1 - rate).
      keys: uint32 [B], from `noise.row_keys`; empty where `rate` is 0.
      compiled: whether XLA compiles this.
      fused: whether XLA compiles the dropout alone.
    """

    rate: float = 0.0
    keys: tf.Tensor | tuple[()] = ()
    compiled: bool = False
    fused: bool = False

    def __call__(
        self,
        x: tf.Tensor,
        site: int,
        whole: Sequence[int] = (),
        begin: Sequence[int] = (),
    ) -> tf.Tensor:
        """Applies dropout to `x`, [B, …], at one site of the network.

        Args:
          x: all elements of the site, or a part of them.
          site: number of the site.
          whole: shape of all elements of a row, where `x` is only a part.
          begin: indices in `whole` of the part's first element.
        """
        if not self.rate:
            return x
        whole = whole or x.shape[1:]
        strides = tuple(math.prod(whole[axis + 1 :]) for axis in range(len(whole)))
        drop = functools.partial(
            fuse,
            _drop,
            fused=self.fused,
            rate=self.rate,
            strides=strides,
            offset=sum(map(operator.mul, begin, strides)),
        )
        shift = tf.constant(site * GOLDEN_GAMMA % 2**32, tf.uint32)

        @tf.custom_gradient
        def call(x: tf.Tensor, keys: tf.Tensor) -> tuple[tf.Tensor, Callable]:
            def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
                # To XLA these are other keys, so it does not keep the noise until here.
                (keys_again,), _ = optimization_barrier([keys], [], self.compiled)
                return drop(upstream, keys_again, shift), None

            return drop(x, keys, shift), gradient

        return call(x, self.keys)


def _drop(
    x: tf.Tensor,
    keys: tf.Tensor,
    shift: tf.Tensor,
    *,
    rate: float,
    strides: Sequence[int],
    offset: int,
) -> tf.Tensor:
    keys = mix_bits(keys + shift) + offset
    kept = bits(keys, x.shape, strides) >= round(rate * 2**32)
    # In bfloat16, 1 / 0.9 would round to 1.109 and change the mean.
    scaled = tf.cast(tf.cast(x, tf.float32) / (1 - rate), x.dtype)
    return tf.where(kept, scaled, tf.zeros([], x.dtype))


NO_DROPOUT = Dropout()
