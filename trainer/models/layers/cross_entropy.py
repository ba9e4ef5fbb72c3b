"""Cross-entropy over a large vocabulary without holding all logits at once.

The tokens are processed in chunks, one after the other.

Dimensions: B sequences, T tokens, C channels, V ids of the vocabulary; N tokens of a
chunk.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

# Tokens whose logits exist at once: 1,024 x 50,257 float32 are 206 MB.
CHUNK_TOKENS = 1024


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
        lambda chunk: _losses(chunk[0], table, chunk[1])[0],
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


@tf.custom_gradient
def summed_loss(
    hidden: tf.Tensor, table: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor
) -> tuple[tf.Tensor, Callable]:
    """Returns the weighted sum of the losses; differentiable.

    The gradient is computed chunk by chunk together with the loss, while the chunk's
    logits exist, and so needs no second product for them. What is kept is as large as
    `hidden` and `table`.

    Args:
      hidden: [B, T, C].
      table: float32 [V, C].
      labels: int32 [B, T].
      weights: float32 [B, T].

    Returns:
      float32 [], in nats.
    """

    def chunk(
        hidden: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        losses, d_logits = _losses(hidden, table, labels)
        # Rounded like the inputs of the other products; added up in float32.
        d_logits = tf.cast(d_logits * weights[:, None], hidden.dtype)
        d_logits = tf.cast(d_logits, tf.float32)
        return (
            tf.reduce_sum(losses * weights),
            tf.cast(tf.matmul(d_logits, table), hidden.dtype),
            tf.matmul(d_logits, tf.cast(hidden, tf.float32), transpose_a=True),
        )

    channels = hidden.shape[2:]
    chunks = (_in_chunks(hidden, channels), _in_chunks(labels), _in_chunks(weights))
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
    d_hidden = _out_of_chunks(rows, hidden.shape)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, None, None]:
        scale = tf.cast(upstream, hidden.dtype)
        return d_hidden * scale, d_table * upstream, None, None

    return total, gradient


def _losses(
    hidden: tf.Tensor, table: tf.Tensor, labels: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns float32 losses [N], and their gradients in the logits [N, V]."""
    return tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(
        features=_logits(hidden, table), labels=labels
    )


def _logits(hidden: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
    """Returns float32 [N, V].

    The product is float32: in bfloat16, neighboring values near -100 are 0.5 apart. On
    a TPU it costs no more, since the TPU multiplies in bfloat16 anyway.
    """
    return tf.matmul(tf.cast(hidden, tf.float32), table, transpose_b=True)


def _in_chunks(values: tf.Tensor, inner: Sequence[int] = ()) -> tf.Tensor:
    """Splits [B, T, *inner] into [chunks, N, *inner]; pads the last with zeros."""
    num_tokens = values.shape[0] * values.shape[1]
    num_chunks = -(-num_tokens // CHUNK_TOKENS)
    size = -(-num_tokens // num_chunks)
    rows = tf.reshape(values, [num_tokens, *inner])
    rows = tf.pad(rows, [[0, num_chunks * size - num_tokens], *([[0, 0]] * len(inner))])
    return tf.reshape(rows, [num_chunks, size, *inner])


def _out_of_chunks(values: tf.Tensor, shape: tf.TensorShape) -> tf.Tensor:
    """Inverts `_in_chunks`: returns `shape`, [B, T, …]."""
    inner = shape[2:]
    return tf.reshape(tf.reshape(values, [-1, *inner])[: shape[0] * shape[1]], shape)
