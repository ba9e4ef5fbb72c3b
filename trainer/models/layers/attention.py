"""Causal self-attention that keeps few activations and skips masked blocks.

Dimensions: B sequences, T tokens, C channels, H heads of D = C/H channels; Q queries of
a block, and the K keys that they attend to.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from trainer.models.layers.documents import Documents
from trainer.models.layers.recompute import fuse, optimization_barrier


class Layout(NamedTuple):
    """How the tokens and channels of heads, [B, H, …], are laid out and multiplied."""

    tokens: int  # their axis
    channels: int
    query: str  # axes, as `tf.einsum` names them
    key: str
    fused: bool = False  # whether XLA compiles what stands between the products

    def part(self, x: tf.Tensor, first: int, last: int) -> tf.Tensor:
        """Returns the tokens from `first` to `last`."""
        return x[:, :, first:last] if self.tokens == 2 else x[..., first:last]


# The TPU would pad the 64 channels of a head to 128.
TOKENS_LAST = Layout(3, 2, "bhdq", "bhdk")
# A CPU's libraries multiply rows, and would transpose anything else.
ROWS = Layout(2, 3, "bhqd", "bhkd", fused=True)


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
    layout: Layout = TOKENS_LAST,
) -> tf.Tensor:
    """Returns softmax(query · key / sqrt(D)) · value.

    The gradient is written out. It keeps the arguments, the result and, with `keep`,
    the exponentials in `dtype`. The softmax divides after the product with the values,
    which has D columns where the exponentials have K.

    Args:
      query: `dtype` [B, H, D, T]; [B, H, T, D] if the layout is `ROWS`.
      key: of the same shape.
      value: of the same shape.
      drop: applies dropout to the weights [B, H, Q, K] of a block; its second argument
        is the index of the block's first query.
      keep: whether to keep the exponentials instead of computing them again.
      compiled: whether XLA compiles this.
      query_block: queries of a block; they attend to all keys up to the last of them.
      documents: that queries do not attend beyond; None: a sequence is one text.
      layout: of the arguments and the result.

    Returns:
      `dtype`, of the same shape.
    """
    length = query.shape[layout.tokens]
    blocks = [
        (first, min(first + query_block, length))
        for first in range(0, length, query_block)
    ]

    exp_scores = functools.partial(
        _exp_scores, documents=documents, compiled=compiled, layout=layout
    )

    @tf.custom_gradient
    def call(*inputs: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        query, key, value = inputs
        kept, mixed = [], []
        for first, last in blocks:
            exponentials, total = exp_scores(
                layout.part(query, first, last), layout.part(key, 0, last), first
            )
            if keep:
                kept.append((exponentials, total))
            product = tf.einsum(
                f"bhqk,{layout.key}->{layout.query}",
                drop(exponentials, first),
                layout.part(value, 0, last),
            )
            mixed.append(_divide_by_total(product, total, layout))
        output = tf.concat(mixed, layout.tokens)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            again: Sequence[tf.Tensor] = inputs
            if not keep:
                again, (upstream,) = optimization_barrier(inputs, [upstream], compiled)

            def softmax(number: int, query: tf.Tensor, key: tf.Tensor) -> tuple:
                first, _ = blocks[number]
                return kept[number] if keep else exp_scores(query, key, first)

            with tf.name_scope("attention"):  # a part of a plan
                return _gradients(
                    again, output, upstream, blocks, softmax, drop, layout
                )

        return output, gradient

    return call(query, key, value)


def _gradients(
    inputs: Sequence[tf.Tensor],
    output: tf.Tensor,
    upstream: tf.Tensor,
    blocks: Sequence[tuple[int, int]],
    softmax: Callable[[int, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    drop: Callable[[tf.Tensor, int], tf.Tensor],
    layout: Layout,
) -> tuple[tf.Tensor, ...]:
    """Returns the gradients to the queries, keys and values of all blocks.

    `softmax` returns the exponentials and sums of a block, by its number, queries and
    keys.
    """
    query, key, value = inputs
    length = query.shape[layout.tokens]
    # The softmax's Jacobian needs, for each query, the sum over the keys of
    # (weight x gradient of the weight), which equals output x gradient of the output.
    inner = tf.cast(upstream, tf.float32) * tf.cast(output, tf.float32)
    inner = tf.reduce_sum(inner, layout.channels)
    d_query, d_key, d_value = [], 0, 0
    for number, (first, last) in enumerate(blocks):
        q = layout.part(query, first, last)
        k, v = layout.part(key, 0, last), layout.part(value, 0, last)
        d_q, d_k, d_v = _block_gradient(
            (q, k, v),
            softmax(number, q, k),
            inner[..., first:last],
            layout.part(upstream, first, last),
            lambda weights: drop(weights, first),
            layout,
        )
        d_query.append(d_q)
        rest = [[0, length - last if axis == layout.tokens else 0] for axis in range(4)]
        d_key += tf.pad(tf.cast(d_k, tf.float32), rest)
        d_value += tf.pad(tf.cast(d_v, tf.float32), rest)
    gradients = (tf.concat(d_query, layout.tokens), d_key, d_value)
    return tuple(tf.cast(values, query.dtype) for values in gradients)


def _block_gradient(
    inputs: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
    softmax: tuple[tf.Tensor, tf.Tensor],
    inner: tf.Tensor,
    upstream: tf.Tensor,
    drop: Callable[[tf.Tensor], tf.Tensor],
    layout: Layout,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the gradients to the queries, keys and values of a block."""
    query, key, value = inputs
    exponentials, total = softmax
    q, k = layout.query, layout.key
    upstream = _divide_by_total(upstream, total, layout)
    d_value = tf.einsum(f"bhqk,{q}->{k}", drop(exponentials), upstream)
    d_exponentials = drop(tf.einsum(f"{q},{k}->bhqk", upstream, value))
    d_scores = fuse(
        _score_gradients,
        *(d_exponentials, exponentials, inner, total),
        fused=layout.fused,
        scale=query.shape[layout.channels] ** -0.5,
    )
    d_query = tf.einsum(f"bhqk,{k}->{q}", d_scores, key)
    return d_query, tf.einsum(f"bhqk,{q}->{k}", d_scores, query), d_value


def _score_gradients(
    d_exponentials: tf.Tensor,
    exponentials: tf.Tensor,
    inner: tf.Tensor,
    total: tf.Tensor,
    scale: float,
) -> tf.Tensor:
    """Returns the gradients to the products of queries and keys, [B, H, Q, K]."""
    d_scores = tf.cast(d_exponentials, tf.float32) - (inner / total)[..., None]
    d_scores *= tf.cast(exponentials, tf.float32) * scale
    return tf.cast(d_scores, exponentials.dtype)


def _exp_scores(
    query: tf.Tensor,
    key: tf.Tensor,
    first: int,
    *,
    documents: Documents | None,
    compiled: bool,
    layout: Layout,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns exp(score - largest score) and its sum over the keys.

    The queries are the last Q of the K tokens, from the token `first` on.

    Returns:
      `dtype` [B, H, Q, K], and float32 [B, H, Q].
    """
    masks: tuple[tf.Tensor, ...] = ()
    if documents is not None:
        starts = documents.starts[:, first : first + query.shape[layout.tokens]]
        documents = documents._replace(starts=starts)
        masks = tuple(mask for mask in documents if mask is not None)
    scores = _scores(query, key, layout)
    settings = {"compiled": compiled, "dtype": query.dtype}
    if not compiled:
        return fuse(_exponentials, scores, masks, fused=layout.fused, **settings)
    # XLA fuses a product with a maximum, or with exponentials, into one kernel. One
    # product for both would write the scores, the largest tensor of all, to memory and
    # read them again. So the product is computed twice.
    largest = tf.reduce_max(_mask(scores, masks, compiled), axis=-1, keepdims=True)
    (query,), (largest,) = optimization_barrier([query], [largest], compiled)
    return _exponentials(_scores(query, key, layout), masks, largest, **settings)


def _exponentials(
    scores: tf.Tensor,
    masks: Sequence[tf.Tensor],
    largest: tf.Tensor | None = None,
    *,
    compiled: bool,
    dtype: tf.DType,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what `_exp_scores` does, of scores without a mask."""
    scores = _mask(scores, masks, compiled)
    if largest is None:
        largest = tf.reduce_max(scores, axis=-1, keepdims=True)
    exponentials = tf.exp(scores - largest)
    return tf.cast(exponentials, dtype), tf.reduce_sum(exponentials, axis=-1)


def _scores(query: tf.Tensor, key: tf.Tensor, layout: Layout) -> tf.Tensor:
    """Returns float32 [B, H, Q, K]."""
    # Scaled before the product, which has D values for each query, and not K.
    query = tf.cast(query, tf.float32) * query.shape[layout.channels] ** -0.5
    product = f"{layout.query},{layout.key}->bhqk"
    return tf.einsum(product, query, tf.cast(key, tf.float32))


def _mask(scores: tf.Tensor, masks: Sequence[tf.Tensor], compiled: bool) -> tf.Tensor:
    """Returns the scores [B, H, Q, K]; -1e9 where a query does not attend to a key.

    `masks` are the tensors of `Documents`; none: a sequence is one text.
    """
    num_queries, num_keys = scores.shape[2:]
    # Without the barrier TensorFlow folds each mask into a constant of the program.
    (position, *masks), _ = optimization_barrier(
        [tf.range(num_keys), *masks], [], compiled
    )
    visible = position[num_keys - num_queries :, None] >= position[None, :]
    if masks:
        visible &= Documents(*masks).visible(position)
    return tf.where(visible, scores, -1e9)


def _divide_by_total(product: tf.Tensor, total: tf.Tensor, layout: Layout) -> tf.Tensor:
    """Divides the channels of each query by float32 [B, H, Q]."""
    return fuse(
        _divide, product, tf.expand_dims(total, layout.channels), fused=layout.fused
    )


def _divide(product: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.cast(product, tf.float32) / total, product.dtype)
