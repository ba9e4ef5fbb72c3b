"""Cross-entropy over a large vocabulary without holding all logits at once.

The tokens are processed in chunks, one after the other.

Dimensions: B sequences, T tokens, C channels, V ids of the vocabulary; N tokens of a
chunk.
"""

import functools
from collections.abc import Callable, Sequence

import tensorflow as tf

from trainer.models.layers.recompute import fuse, optimization_barrier

# Tokens whose float32 logits exist at once: 1,024 x 50,257 are 206 MB.
CHUNK_TOKENS = 1024
# Far from overflow: 1 / total is no denormal number, which a TPU would make 0.
_LARGEST_TOTAL = 1e30


def token_losses(hidden: tf.Tensor, table: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns the loss of each token, without a gradient.

    Args:
      hidden: [B, T, C].
      table: float32 [V, C].
      labels: int32 [B, T].

    Returns:
      float32 [B, T], in nats.
    """
    losses = tf.map_fn(
        lambda chunk: tf.nn.sparse_softmax_cross_entropy_with_logits(
            chunk[1], _logits(chunk[0], table)
        ),
        (_in_chunks(hidden, hidden.shape[2:]), _in_chunks(labels)),
        fn_output_signature=tf.float32,
        parallel_iterations=1,
    )
    return _out_of_chunks(losses, labels.shape)


def token_scores(
    hidden: tf.Tensor, table: tf.Tensor, labels: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the loss of each token, and whether it is the likeliest.

    Args:
      hidden: [B, T, C].
      table: float32 [V, C].
      labels: int32 [B, T].

    Returns:
      float32 [B, T], in nats, and bool [B, T].
    """

    def score(chunk: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        logits = _logits(chunk[0], table)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(chunk[1], logits)
        likeliest = tf.argmax(logits, axis=1, output_type=tf.int32)
        return losses, likeliest == chunk[1]

    columns = tf.map_fn(
        score,
        (_in_chunks(hidden, hidden.shape[2:]), _in_chunks(labels)),
        fn_output_signature=(tf.float32, tf.bool),
        parallel_iterations=1,
    )
    losses, is_likeliest = (_out_of_chunks(c, labels.shape) for c in columns)
    return losses, is_likeliest


def summed_loss(
    hidden: tf.Tensor,
    table: tf.Tensor,
    labels: tf.Tensor,
    weights: tf.Tensor,
    *,
    compiled: bool,
    on_cpu: bool = False,
) -> tf.Tensor:
    """Returns the weighted sum of the losses; differentiable.

    The gradient is computed chunk by chunk together with the loss, while the chunk's
    logits exist, and so needs no second product for them. What is kept is as large as
    `hidden` and `table`.

    Args:
      hidden: [B, T, C].
      table: float32 [V, C].
      labels: int32 [B, T].
      weights: float32 [B, T].
      compiled: whether XLA compiles this.
      on_cpu: as in `Options`. The products of the gradients then have the type of
        `hidden`, as all others but the logits.

    Returns:
      float32 [], in nats.
    """

    @tf.custom_gradient
    def call(hidden: tf.Tensor, table: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        total, d_hidden, d_table = _sum_chunks(
            hidden, table, labels, weights, compiled, on_cpu
        )

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return d_hidden * tf.cast(upstream, hidden.dtype), d_table * upstream

        return total, gradient

    return call(hidden, table)


def _sum_chunks(
    hidden: tf.Tensor,
    table: tf.Tensor,
    labels: tf.Tensor,
    weights: tf.Tensor,
    compiled: bool,
    on_cpu: bool,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the weighted sum of the losses, and its gradients."""
    chunk = functools.partial(
        _chunk,
        table=table,
        factors=tf.cast(table, hidden.dtype if on_cpu else tf.float32),
        compiled=compiled,
        on_cpu=on_cpu,
    )
    # As many bytes as the float32 logits of CHUNK_TOKENS.
    size = CHUNK_TOKENS * 4 // hidden.dtype.size if compiled else CHUNK_TOKENS
    chunks = [
        _in_chunks(values, values.shape[2:], size)
        for values in (hidden, labels, weights)
    ]
    num_chunks = chunks[0].shape[0]

    def body(
        index: tf.Tensor, total: tf.Tensor, d_hidden: tf.TensorArray, d_table: tf.Tensor
    ) -> tuple:
        loss, rows, d_chunk = chunk(*(values[index] for values in chunks))
        return index + 1, total + loss, d_hidden.write(index, rows), d_table + d_chunk

    if num_chunks == 1:
        total, rows, d_table = chunk(*(values[0] for values in chunks))
    else:
        _, total, array, d_table = tf.while_loop(
            lambda index, *_: index < num_chunks,
            body,
            (
                tf.constant(0),
                tf.constant(0.0),
                tf.TensorArray(
                    hidden.dtype, num_chunks, element_shape=chunks[0].shape[1:]
                ),
                tf.zeros_like(table),
            ),
            parallel_iterations=1,
            maximum_iterations=num_chunks,
        )
        rows = array.stack()
    return total, _out_of_chunks(rows, hidden.shape), d_table


def _chunk(
    hidden: tf.Tensor,
    labels: tf.Tensor,
    weights: tf.Tensor,
    *,
    table: tf.Tensor,
    factors: tf.Tensor,
    compiled: bool,
    on_cpu: bool,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns what `_sum_chunks` does, of N tokens at once.

    `factors` is the table in the type of the gradients' products.
    """
    if compiled:
        losses, d_logits = _weighted(hidden, table, labels, weights)
    else:
        losses, d_logits = fuse(
            _of_logits,
            *(_logits(hidden, table), labels, weights),
            fused=on_cpu,
            dtype=hidden.dtype,
        )
    d_logits = tf.cast(d_logits, factors.dtype)
    d_table = tf.matmul(d_logits, tf.cast(hidden, factors.dtype), transpose_a=True)
    return (
        tf.reduce_sum(losses * weights),
        tf.cast(tf.matmul(d_logits, factors), hidden.dtype),
        tf.cast(d_table, tf.float32),
    )


def _weighted(
    hidden: tf.Tensor,
    table: tf.Tensor,
    labels: tf.Tensor,
    weights: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the losses, and the gradients of their weighted sum in the logits.

    XLA compiles this. Only exp(logit - shift) is written to memory, in the type of
    `hidden`. XLA fuses it with the product, since the shift is known before: about the
    logit of the label. Where a loss exceeds 69 nats, that comes near to overflow; then
    the largest logit is subtracted, as usual, which takes two products more.

    Args:
      hidden: [N, C].
      table: float32 [V, C].
      labels: int32 [N].
      weights: float32 [N].

    Returns:
      float32 [N], in nats, and [N, V] of the type of `hidden`, as the inputs of other
      products are.
    """

    def is_label() -> tf.Tensor:
        return tf.range(table.shape[0]) == labels[:, None]

    def softmax(
        hidden: tf.Tensor, shift: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        shifted = _logits(hidden, table) - shift[:, None]
        exponentials = tf.exp(shifted)
        results = (
            tf.cast(exponentials, hidden.dtype),
            tf.reduce_sum(exponentials, axis=1),
            tf.reduce_sum(tf.where(is_label(), shifted, 0.0), axis=1),
        )
        # Without the barrier XLA would write the logits, and move parts of a branch.
        return tuple(optimization_barrier(results, [], compiled=True)[0])

    def of_largest() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        largest = tf.reduce_max(_logits(hidden, table), axis=1)
        (again,), (largest,) = optimization_barrier([hidden], [largest], compiled=True)
        return softmax(again, largest)

    products = tf.cast(hidden, tf.float32) * tf.gather(table, labels)
    of_label = softmax(hidden, tf.reduce_sum(products, axis=1))
    is_safe = tf.reduce_all(of_label[1] < _LARGEST_TOTAL)  # NaN is not
    exponentials, total, label = tf.cond(is_safe, lambda: of_label, of_largest)
    scale = weights / total
    # Small for a token that is nearly sure, and exact.
    d_label = tf.exp(label) * scale - weights
    d_others = tf.cast(exponentials, tf.float32) * scale[:, None]
    d_logits = tf.where(is_label(), d_label[:, None], d_others)
    losses = tf.math.log(total) - label
    return losses, tf.cast(d_logits, hidden.dtype)


def _of_logits(
    logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, dtype: tf.DType
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what `_weighted` does, of logits in memory."""
    losses, d_logits = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(
        features=logits, labels=labels
    )
    return losses, tf.cast(d_logits * weights[:, None], dtype)


def _logits(hidden: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
    """Returns float32 [N, V].

    The product is float32: in bfloat16, neighboring values near -100 are 0.5 apart. On
    a TPU it costs no more, since the TPU multiplies in bfloat16 anyway.
    """
    return tf.matmul(tf.cast(hidden, tf.float32), table, transpose_b=True)


def _in_chunks(
    values: tf.Tensor, inner: Sequence[int] = (), size: int = 0
) -> tf.Tensor:
    """Splits [B, T, *inner] into [chunks, N, *inner]; pads the last with zeros.

    N is at most `size`; 0: CHUNK_TOKENS.
    """
    num_tokens = values.shape[0] * values.shape[1]
    num_chunks = -(-num_tokens // (size or CHUNK_TOKENS))
    size = -(-num_tokens // num_chunks)
    rows = tf.reshape(values, [num_tokens, *inner])
    rows = tf.pad(rows, [[0, num_chunks * size - num_tokens], *([[0, 0]] * len(inner))])
    return tf.reshape(rows, [num_chunks, size, *inner])


def _out_of_chunks(values: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
    """Inverts `_in_chunks`: returns `shape`, [B, T, …]."""
    inner = shape[2:]
    return tf.reshape(tf.reshape(values, [-1, *inner])[: shape[0] * shape[1]], shape)
