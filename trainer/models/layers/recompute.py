"""Trades memory for computation in a form that XLA does not undo."""

import functools
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
            again, arrived = optimization_barrier(flat, upstream, compiled)
            again = tf.nest.pack_sequence_as(inputs, again)
            return tf.nest.flatten(_gradients(function, again, arrived))

        return function(*tf.nest.pack_sequence_as(inputs, flat)), gradient

    return call(*tf.nest.flatten(inputs))


def fuse(
    function: Callable[..., Any], *inputs: Any, fused: bool, **settings: Any
) -> Any:
    """Computes `function(*inputs, **settings)` in one kernel, where `fused`.

    XLA compiles the kernel, and one more for the gradient, which keeps only the inputs.
    All calls with the same function, settings and shapes share them.

    Args:
      function: of a module, since kernels are kept by it; with gradients as in
        `rematerialize`.
      *inputs: tensors or tuples of tensors.
      fused: whether XLA compiles it; otherwise it is only called.
      **settings: hashable arguments of the function.
    """
    if not fused:
        return function(*inputs, **settings)
    forward, backward = _kernels(function, **settings)

    @tf.custom_gradient
    def call(*flat: tf.Tensor) -> tuple[Any, Callable]:
        again = tf.nest.pack_sequence_as(inputs, flat)

        def gradient(*upstream: tf.Tensor) -> list[tf.Tensor | None]:
            return tf.nest.flatten(backward(again, upstream))

        return forward(*again), gradient

    return call(*tf.nest.flatten(inputs))


@functools.cache
def _kernels(
    function: Callable[..., Any], **settings: Any
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns a function, compiled, and its gradient to the inputs."""
    function = functools.partial(function, **settings)
    kernel = functools.partial(tf.function, jit_compile=True, autograph=False)
    return kernel(function), kernel(functools.partial(_gradients, function))


def _gradients(
    function: Callable[..., Any], inputs: Any, upstream: Sequence[tf.Tensor]
) -> Any:
    """Returns the gradients to `inputs`, of the same structure; of integers None."""
    flat = tf.nest.flatten(inputs)
    sources = [tensor for tensor in flat if tensor.dtype.is_floating]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        outputs = function(*inputs)
    gradients = iter(tape.gradient(outputs, sources, upstream))
    return tf.nest.pack_sequence_as(
        inputs, [next(gradients) if t.dtype.is_floating else None for t in flat]
    )


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
