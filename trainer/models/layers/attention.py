"""Causal self-attention that keeps little and computes no more than it must.

Dimensions: B sequences, T tokens, C channels, H heads of D = C/H channels; Q queries of
a block, and the K keys that they may see.
"""

from collections.abc import Callable

import tensorflow as tf

from trainer.models.layers.recompute import hold


def attention(
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    *,
    drop: Callable[[tf.Tensor, int], tf.Tensor],
    keep: bool,
    compiled: bool,
    query_block: int,
) -> tf.Tensor:
    """Mixes values by softmax(query · key / sqrt(D)).

    Its gradient is written out: what is kept are the arguments, what is returned and,
    with `keep`, the exponentials in `dtype`. The softmax's division comes after the
    product with the values, which has D columns where the exponentials have K.

    Args:
      query: `dtype` [B, H, D, T]. With the tokens last, as the TPU's compiler wants
        these, the 64 channels of a head are not padded to 128.
      key: same.
      value: same.
      drop: applies dropout to the weights [B, H, Q, K] of a block, by its first query.
      keep: keep the exponentials, or compute them again for the gradient.
      compiled: whether this is compiled by XLA.
      query_block: queries that attend at once, to the keys up to the last of them.

    Returns:
      `dtype` [B, H, D, T].
    """
    length = query.shape[3]
    blocks = [
        (first, min(first + query_block, length))
        for first in range(0, length, query_block)
    ]

    @tf.custom_gradient
    def call(*inputs: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        query, key, value = inputs
        kept, mixed = [], []
        for first, last in blocks:
            powers, total = _powers(query[..., first:last], key[..., :last], compiled)
            if keep:
                kept.append((powers, total))
            product = tf.einsum(
                "bhqk,bhdk->bhdq", drop(powers, first), value[..., :last]
            )
            mixed.append(_divided(product, total))
        output = tf.concat(mixed, axis=3)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            query, key, value = inputs
            if not keep:
                (query, key, value), (upstream,) = hold(inputs, [upstream], compiled)
            # The softmax's Jacobian needs, for each query, the sum over its keys of
            # (weight x its gradient). That is output x its gradient.
            inner = tf.cast(upstream, tf.float32) * tf.cast(output, tf.float32)
            inner = tf.reduce_sum(inner, axis=2)
            d_query, d_key, d_value = [], 0, 0
            for number, (first, last) in enumerate(blocks):
                q, k, v = query[..., first:last], key[..., :last], value[..., :last]
                d_q, d_k, d_v = _block_gradient(
                    (q, k, v),
                    kept[number] if keep else _powers(q, k, compiled),
                    inner[..., first:last],
                    upstream[..., first:last],
                    lambda weights: drop(weights, first),
                )
                d_query.append(d_q)
                rest = [[0, 0], [0, 0], [0, 0], [0, length - last]]
                d_key += tf.pad(tf.cast(d_k, tf.float32), rest)
                d_value += tf.pad(tf.cast(d_v, tf.float32), rest)
            gradients = (tf.concat(d_query, axis=3), d_key, d_value)
            return tuple(tf.cast(values, query.dtype) for values in gradients)

        return output, gradient

    return call(query, key, value)


def _block_gradient(
    inputs: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
    softmax: tuple[tf.Tensor, tf.Tensor],
    inner: tf.Tensor,
    upstream: tf.Tensor,
    drop: Callable[[tf.Tensor], tf.Tensor],
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the gradients to the queries of a block, and to keys and values."""
    query, key, value = inputs
    powers, total = softmax
    upstream = _divided(upstream, total)
    d_value = tf.einsum("bhqk,bhdq->bhdk", drop(powers), upstream)
    d_powers = drop(tf.einsum("bhdq,bhdk->bhqk", upstream, value))
    d_scores = tf.cast(d_powers, tf.float32) - (inner / total)[..., None]
    d_scores *= tf.cast(powers, tf.float32) * query.shape[2] ** -0.5
    d_scores = tf.cast(d_scores, query.dtype)
    d_query = tf.einsum("bhqk,bhdk->bhdq", d_scores, key)
    return d_query, tf.einsum("bhqk,bhdq->bhdk", d_scores, query), d_value


def _powers(
    query: tf.Tensor, key: tf.Tensor, compiled: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns exp(score - largest score), `dtype` [B, H, Q, K], and its sum over K.

    The queries are the last Q of the K tokens. Scores and sum, [B, H, Q], are float32.
    """
    scores = _scores(query, key, compiled)
    largest = tf.reduce_max(scores, axis=-1, keepdims=True)
    if compiled:
        # XLA ends a product with its maximum, or with its exponentials, in one kernel.
        # With one product for both, the scores would be written to memory and read
        # again: the largest tensor of all. So they are computed twice.
        (query,), (largest,) = hold([query], [largest], compiled)
        scores = _scores(query, key, compiled)
    powers = tf.exp(scores - largest)
    return tf.cast(powers, query.dtype), tf.reduce_sum(powers, axis=-1)


def _scores(query: tf.Tensor, key: tf.Tensor, compiled: bool) -> tf.Tensor:
    """Returns float32 [B, H, Q, K], at or below -1e9 where the key comes later."""
    depth, num_queries, num_keys = query.shape[2], query.shape[3], key.shape[3]
    scores = tf.einsum(
        "bhdq,bhdk->bhqk", tf.cast(query, tf.float32), tf.cast(key, tf.float32)
    )
    # Held, or TensorFlow would make of each mask a constant of the program.
    (position,), _ = hold([tf.range(num_keys)], [], compiled)
    visible = position[num_keys - num_queries :, None] >= position[None, :]
    return tf.where(visible, scores * depth**-0.5, -1e9)


def _divided(product: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
    """Divides [B, H, D, Q] by float32 [B, H, Q]."""
    quotient = tf.cast(product, tf.float32) / total[:, :, None]
    return tf.cast(quotient, product.dtype)
