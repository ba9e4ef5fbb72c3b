"""Recomputation instead of memory, in a form that XLA does not undo."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops


def recomputed(function: Callable[..., Any], *inputs: Any, compiled: bool) -> Any:
    """Returns `function(*inputs)`, of which only the inputs are kept for the gradient.

    The gradient calls the function once more. Of that second call only what the
    gradient needs is computed: products whose results it does not need fall away.

    Args:
      function: makes tensors of tensors. It reads no variables, and nothing that it
        captures gets a gradient.
      *inputs: its arguments: tensors, or tuples of them. Integers get no gradient.
      compiled: whether this is compiled by XLA.
    """

    @tf.custom_gradient
    def call(*flat: tf.Tensor) -> tuple[Any, Callable]:
        def gradient(*upstream: tf.Tensor) -> list[tf.Tensor | None]:
            held, arrived = hold(flat, upstream, compiled)
            sources = [tensor for tensor in held if tensor.dtype.is_floating]
            with tf.GradientTape() as tape:
                tape.watch(sources)
                outputs = function(*tf.nest.pack_sequence_as(inputs, held))
            gradients = iter(tape.gradient(outputs, sources, arrived))
            return [next(gradients) if t.dtype.is_floating else None for t in held]

        return function(*tf.nest.pack_sequence_as(inputs, flat)), gradient

    return call(*tf.nest.flatten(inputs))


def hold(
    kept: Sequence[tf.Tensor], upstream: Sequence[tf.Tensor], compiled: bool
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Returns the same tensors, as others that are not there before `upstream` is.

    XLA would find what is computed of them equal to what was computed of `kept`, and
    merge the two, as it does with `tf.recompute_grad`. It does not look through an
    optimization barrier, which exists in compiled code only. Where nothing is compiled,
    a control dependency does the same to TensorFlow's own optimizer.
    """
    if compiled:
        both = gen_xla_ops.xla_optimization_barrier([*kept, *upstream])
        return both[: len(kept)], both[len(kept) :]
    with tf.control_dependencies(upstream):
        return [tf.identity(tensor) for tensor in kept], list(upstream)
