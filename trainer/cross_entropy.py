"""Cross-entropy against a large vocabulary that never holds all logits.

Tokens are taken in chunks, one after the other. Dimensions: N tokens, C channels,
V ids of the vocabulary.
"""

from collections.abc import Callable

import tensorflow as tf

# Tokens whose logits exist at once: 1,024 x 50,257 float32 are 206 MB.
CHUNK_TOKENS = 1024


def token_losses(hidden: tf.Tensor, table: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Returns the loss of each token, without a gradient.

    Args:
      hidden: [N, C].
      table: float32 [V, C].
      labels: int32 [N].

    Returns:
      float32 [N], in nats.
    """
    losses = tf.map_fn(
        lambda chunk: _losses(chunk[0], table, chunk[1])[0],
        (_in_chunks(hidden), _in_chunks(labels)),
        fn_output_signature=tf.float32,
        parallel_iterations=1,
    )
    return tf.reshape(losses, [-1])[: labels.shape[0]]


@tf.custom_gradient
def summed_loss(
    hidden: tf.Tensor, table: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor
) -> tuple[tf.Tensor, Callable]:
    """Returns the weighted sum of the losses, and its gradient.

    The gradient is made chunk by chunk together with the loss, while the chunk's logits
    are there: it costs no second product for them. What is kept is as large as `hidden`
    and `table`.

    Args:
      weights: float32 [N].
      (others as in `token_losses`)

    Returns:
      float32 [], in nats.
    """

    def chunk(
        hidden: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        losses, d_logits = _losses(hidden, table, labels)
        # Rounded as the other products' inputs are; added up in float32.
        d_logits = tf.cast(d_logits * weights[:, None], hidden.dtype)
        d_logits = tf.cast(d_logits, tf.float32)
        return (
            tf.reduce_sum(losses * weights),
            tf.cast(tf.matmul(d_logits, table), hidden.dtype),
            tf.matmul(d_logits, tf.cast(hidden, tf.float32), transpose_a=True),
        )

    num_tokens, channels = hidden.shape
    chunks = tuple(map(_in_chunks, (hidden, labels, weights)))
    num_chunks = chunks[0].shape[0]

    def body(
        index: tf.Tensor, total: tf.Tensor, d_hidden: tf.TensorArray, d_table: tf.Tensor
    ) -> tuple:
        loss, rows, more = chunk(*(values[index] for values in chunks))
        return index + 1, total + loss, d_hidden.write(index, rows), d_table + more

    if num_chunks == 1:
        total, d_hidden, d_table = chunk(*(values[0] for values in chunks))
    else:
        _, total, rows, d_table = tf.while_loop(
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
        d_hidden = tf.reshape(rows.stack(), [-1, channels])[:num_tokens]

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, None, None]:
        scale = tf.cast(upstream, hidden.dtype)
        return d_hidden * scale, d_table * upstream, None, None

    return total, gradient


def _losses(
    hidden: tf.Tensor, table: tf.Tensor, labels: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns float32 losses [N] and their gradients to the logits [N, V].

    A float32 product: rounded to bfloat16, logits of -100 would lie 0.5 apart. On a
    TPU it costs no more, since the inputs are multiplied as bfloat16 there anyway.
    """
    logits = tf.matmul(tf.cast(hidden, tf.float32), table, transpose_b=True)
    return tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(
        features=logits, labels=labels
    )


def _in_chunks(values: tf.Tensor) -> tf.Tensor:
    """[N, …] -> [chunks, tokens of a chunk, …]; the last one is filled with zeros."""
    num_tokens = values.shape[0]
    num_chunks = -(-num_tokens // CHUNK_TOKENS)
    size = -(-num_tokens // num_chunks)
    fill = [[0, num_chunks * size - num_tokens]] + [[0, 0]] * (values.shape.rank - 1)
    return tf.reshape(tf.pad(values, fill), [num_chunks, size, *values.shape[1:]])
