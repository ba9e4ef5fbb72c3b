"""Trades memory for computation in a form that XLA does not undo."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops


def rematerialize(function: Callable[..., Any], *inputs: Any, compiled: bool) -> Any:
    """Computes `function(*inputs)` and keeps only the inputs for the gradient.

    The gradient calls the function a second time. Only those parts of the second call
    that the gradient needs are computed.

    Args:
      function: maps tensors to tensors. It must not read variables; captured tensors
        get no gradient.
      *inputs: arguments of the function, tensors or tuples of tensors. Integers get no
        gradient.
      compiled: whether XLA compiles this.
    """

    @tf.custom_gradient
    def call(*flat: tf.Tensor) -> tuple[Any, Callable]:
        def gradient(*upstream: tf.Tensor) -> list[tf.Tensor | None]:
            inputs_again, arrived = optimization_barrier(flat, upstream, compiled)
            sources = [tensor for tensor in inputs_again if tensor.dtype.is_floating]
            with tf.GradientTape() as tape:
                tape.watch(sources)
                outputs = function(*tf.nest.pack_sequence_as(inputs, inputs_again))
            gradients = iter(tape.gradient(outputs, sources, arrived))
            return [
                next(gradients) if tensor.dtype.is_floating else None
                for tensor in inputs_again
            ]

        return function(*tf.nest.pack_sequence_as(inputs, flat)), gradient

    return call(*tf.nest.flatten(inputs))


def optimization_barrier(
    kept: Sequence[tf.Tensor], upstream: Sequence[tf.Tensor], compiled: bool
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Returns the same values as new tensors that depend on `upstream`.

    XLA merges a computation with an equal one made before, which is why
    `tf.recompute_grad` saves nothing. It does not look through an optimization barrier.
    The barrier exists in compiled code only; elsewhere a control dependency has the
    same effect on TensorFlow's own optimizer.

    Args:
      kept: tensors that the forward pass kept.
      upstream: gradients that arrive in the backward pass.
      compiled: whether XLA compiles this.

    Returns:
      The values of `kept`, and those of `upstream`.
    """
    if compiled:
        both = gen_xla_ops.xla_optimization_barrier([*kept, *upstream])
        return both[: len(kept)], both[len(kept) :]
    with tf.control_dependencies(upstream):
        return [tf.identity(tensor) for tensor in kept], list(upstream)
