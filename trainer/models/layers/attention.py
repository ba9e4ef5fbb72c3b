"""Causal self-attention that keeps few activations and skips masked blocks.

Dimensions: B sequences, T tokens, C channels, H heads of D = C/H channels; Q queries of
a block, and the K keys that they attend to.
"""

import functools
from collections.abc import Callable, Sequence

import tensorflow as tf

from trainer.models.layers.documents import Documents
from trainer.models.layers.recompute import optimization_barrier


def attention(
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    *,
    drop: Callable[[tf.Tensor, int], tf.Tensor],
    keep: bool,
    compiled: bool,
    query_block: int,
    documents: Documents | None = None,
) -> tf.Tensor:
    """Returns softmax(query · key / sqrt(D)) · value.

    The gradient is written out. It keeps the arguments, the result and, with `keep`,
    the exponentials in `dtype`. The softmax divides after the product with the values,
    which has D columns where the exponentials have K.

    Args:
      query: `dtype` [B, H, D, T]. The tokens come last, so that the TPU does not pad
        the 64 channels of a head to 128.
      key: `dtype` [B, H, D, T].
      value: `dtype` [B, H, D, T].
      drop: applies dropout to the weights [B, H, Q, K] of a block; its second argument
        is the index of the block's first query.
      keep: whether to keep the exponentials instead of computing them again.
      compiled: whether XLA compiles this.
      query_block: queries of a block; they attend to all keys up to the last of them.
      documents: that queries do not attend beyond; None: a sequence is one text.

    Returns:
      `dtype` [B, H, D, T].
    """
    length = query.shape[3]
    blocks = [
        (first, min(first + query_block, length))
        for first in range(0, length, query_block)
    ]

    exp_scores = functools.partial(_exp_scores, documents=documents, compiled=compiled)

    @tf.custom_gradient
    def call(*inputs: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        query, key, value = inputs
        kept, mixed = [], []
        for first, last in blocks:
            exponentials, total = exp_scores(
                query[..., first:last], key[..., :last], first
            )
            if keep:
                kept.append((exponentials, total))
            product = tf.einsum(
                "bhqk,bhdk->bhdq", drop(exponentials, first), value[..., :last]
            )
            mixed.append(_divide_by_total(product, total))
        output = tf.concat(mixed, axis=3)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            again: Sequence[tf.Tensor] = inputs
            if not keep:
                again, (upstream,) = optimization_barrier(inputs, [upstream], compiled)

            def softmax(number: int, query: tf.Tensor, key: tf.Tensor) -> tuple:
                first, _ = blocks[number]
                return kept[number] if keep else exp_scores(query, key, first)

            with tf.name_scope("attention"):  # a part of a plan
                return _gradients(again, output, upstream, blocks, softmax, drop)

        return output, gradient

    return call(query, key, value)


def _gradients(
    inputs: Sequence[tf.Tensor],
    output: tf.Tensor,
    upstream: tf.Tensor,
    blocks: Sequence[tuple[int, int]],
    softmax: Callable[[int, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    drop: Callable[[tf.Tensor, int], tf.Tensor],
) -> tuple[tf.Tensor, ...]:
    """Returns the gradients to the queries, keys and values of all blocks.

    `softmax` returns the exponentials and sums of a block, by its number, queries and
    keys.
    """
    query, key, value = inputs
    length = query.shape[3]
    # The softmax's Jacobian needs, for each query, the sum over the keys of
    # (weight x gradient of the weight), which equals output x gradient of the output.
    inner = tf.cast(upstream, tf.float32) * tf.cast(output, tf.float32)
    inner = tf.reduce_sum(inner, axis=2)
    d_query, d_key, d_value = [], 0, 0
    for number, (first, last) in enumerate(blocks):
        q, k, v = query[..., first:last], key[..., :last], value[..., :last]
        d_q, d_k, d_v = _block_gradient(
            (q, k, v),
            softmax(number, q, k),
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


def _block_gradient(
    inputs: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
    softmax: tuple[tf.Tensor, tf.Tensor],
    inner: tf.Tensor,
    upstream: tf.Tensor,
    drop: Callable[[tf.Tensor], tf.Tensor],
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the gradients to the queries, keys and values of a block."""
    query, key, value = inputs
    exponentials, total = softmax
    upstream = _divide_by_total(upstream, total)
    d_value = tf.einsum("bhqk,bhdq->bhdk", drop(exponentials), upstream)
    d_exponentials = drop(tf.einsum("bhdq,bhdk->bhqk", upstream, value))
    d_scores = tf.cast(d_exponentials, tf.float32) - (inner / total)[..., None]
    d_scores *= tf.cast(exponentials, tf.float32) * query.shape[2] ** -0.5
    d_scores = tf.cast(d_scores, query.dtype)
    d_query = tf.einsum("bhqk,bhdk->bhdq", d_scores, key)
    return d_query, tf.einsum("bhqk,bhdq->bhdk", d_scores, query), d_value


def _exp_scores(
    query: tf.Tensor,
    key: tf.Tensor,
    first: int,
    *,
    documents: Documents | None,
    compiled: bool,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns exp(score - largest score) and its sum over the keys.

    The queries are the last Q of the K tokens, from the token `first` on.

    Returns:
      `dtype` [B, H, Q, K], and float32 [B, H, Q].
    """
    if documents is not None:
        starts = documents.starts[:, first : first + query.shape[3]]
        documents = documents._replace(starts=starts)
    scores = _scores(query, key, documents, compiled)
    largest = tf.reduce_max(scores, axis=-1, keepdims=True)
    if compiled:
        # XLA fuses a product with a maximum, or with exponentials, into one kernel. One
        # product for both would write the scores, the largest tensor of all, to memory
        # and read them again. So the product is computed twice.
        (query,), (largest,) = optimization_barrier([query], [largest], compiled)
        scores = _scores(query, key, documents, compiled)
    exponentials = tf.exp(scores - largest)
    return tf.cast(exponentials, query.dtype), tf.reduce_sum(exponentials, axis=-1)


def _scores(
    query: tf.Tensor, key: tf.Tensor, documents: Documents | None, compiled: bool
) -> tf.Tensor:
    """Returns float32 [B, H, Q, K]; -1e9 where the query does not attend to the key."""
    num_queries, num_keys = query.shape[3], key.shape[3]
    # Scaled before the product, which has D values for each query, and not K.
    query = tf.cast(query, tf.float32) * query.shape[2] ** -0.5
    scores = tf.einsum("bhdq,bhdk->bhqk", query, tf.cast(key, tf.float32))
    # Without the barrier TensorFlow folds each mask into a constant of the program.
    masks = [] if documents is None else [m for m in documents if m is not None]
    (position, *masks), _ = optimization_barrier(
        [tf.range(num_keys), *masks], [], compiled
    )
    visible = position[num_keys - num_queries :, None] >= position[None, :]
    if masks:
        visible &= Documents(*masks).visible(position)
    return tf.where(visible, scores, -1e9)


def _divide_by_total(product: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
    """Divides [B, H, D, Q] by float32 [B, H, Q]."""
    quotient = tf.cast(product, tf.float32) / total[:, :, None]
    return tf.cast(quotient, product.dtype)
