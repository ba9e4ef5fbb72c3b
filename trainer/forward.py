"""The training forward over TFGPT2's own layers.

Weights, names, saving and `generate` are transformers'. This reads the same layers'
weights with static shapes, a causal mask made on the fly, stateless dropout, matrix
products and what lies between the layers in `dtype`, and attention scores, softmax,
layer norm, logits and loss in float32.

Dimensions: B sequences, T tokens, C channels, H heads, V ids of the vocabulary.
"""

from collections.abc import Callable

import tensorflow as tf
import tf_keras
from transformers import TFGPT2LMHeadModel

# Dropout happens at three places of a block: attention, its projection, the MLP.
_SITES_PER_BLOCK = 3


def hidden_states(
    model: TFGPT2LMHeadModel,
    tokens: tf.Tensor,
    *,
    dtype: tf.DType = tf.float32,
    dropout: float = 0.0,
    seed: tf.Tensor | None = None,
) -> tf.Tensor:
    """Runs the network up to the last layer norm.

    Args:
      model: whose weights are read.
      tokens: int32 [B, T]. Padding stands at the end, where no real token sees it.
      dtype: of the matrix products and of what lies between the layers.
      dropout: rate, at every place where GPT-2 has dropout.
      seed: int32 [2], needed where `dropout` is not 0.

    Returns:
      `dtype` [B, T, C].
    """

    def drop(x: tf.Tensor, site: int) -> tf.Tensor:
        if not dropout:
            return x
        site_seed = tf.random.experimental.stateless_fold_in(seed, site)
        return tf.nn.experimental.stateless_dropout(x, dropout, site_seed)

    transformer = model.transformer
    length = tokens.shape[1]
    table = tf.convert_to_tensor(transformer.wte.embeddings)
    x = _embed(table, tokens)  # (B, T, C)
    x = tf.cast(x + transformer.wpe.embeddings[:length], dtype)
    x = drop(x, 0)
    for index, block in enumerate(transformer.h):
        site = 1 + index * _SITES_PER_BLOCK
        a = _attention(block.attn, _layer_norm(block.ln_1, x), lambda w: drop(w, site))
        x += drop(a, site + 1)
        m = block.mlp.act(_project(block.mlp.c_fc, _layer_norm(block.ln_2, x)))
        x += drop(_project(block.mlp.c_proj, m), site + 2)
    return _layer_norm(transformer.ln_f, x)


def logits(model: TFGPT2LMHeadModel, hidden: tf.Tensor) -> tf.Tensor:
    """Returns float32 [B, T, V]: the hidden states against the input embedding.

    A float32 product: rounded to bfloat16, logits of -100 would lie 0.5 apart. On a
    TPU it costs no more, since the inputs are multiplied as bfloat16 there anyway.
    """
    table = model.transformer.wte.embeddings
    return tf.matmul(tf.cast(hidden, tf.float32), table, transpose_b=True)


def summed_loss(
    model: TFGPT2LMHeadModel,
    tokens: tf.Tensor,
    length: tf.Tensor,
    *,
    dtype: tf.DType = tf.float32,
    dropout: float = 0.0,
    seed: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the cross-entropy summed over loss-bearing tokens, and their number.

    The labels are the inputs; here, and nowhere else, they are shifted. A token bears
    loss when it is real and not the first of its record.

    Args:
      length: int32 [B], the real tokens of each record.
      (others as in `hidden_states`)

    Returns:
      float32 [] in nats, float32 [].
    """
    hidden = hidden_states(model, tokens, dtype=dtype, dropout=dropout, seed=seed)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=tokens[:, 1:], logits=logits(model, hidden[:, :-1])
    )  # (B, T-1)
    real = tf.range(1, tokens.shape[1])[None, :] < length[:, None]
    weights = tf.cast(real, tf.float32)
    return tf.reduce_sum(losses * weights), tf.reduce_sum(weights)


@tf.custom_gradient
def _embed(table: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
    """Looks tokens up. The table also makes the logits, so its gradient is dense."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
        rows = tf.reshape(upstream, [-1, table.shape[1]])
        dense = tf.math.unsorted_segment_sum(
            rows, tf.reshape(tokens, [-1]), table.shape[0]
        )
        return dense, None

    return tf.gather(table, tokens), gradient


def _attention(
    layer: tf_keras.layers.Layer, x: tf.Tensor, drop: Callable[[tf.Tensor], tf.Tensor]
) -> tf.Tensor:
    """Causal self-attention: `dtype` [B, T, C] -> [B, T, C]."""
    batch, length, channels = x.shape
    heads = layer.n_head

    def split_heads(part: tf.Tensor) -> tf.Tensor:
        part = tf.reshape(part, [batch, length, heads, channels // heads])
        return tf.transpose(part, [0, 2, 1, 3])  # (B, H, T, C/H)

    query, key, value = map(split_heads, tf.split(_project(layer.c_attn, x), 3, axis=2))
    query, key = tf.cast(query, tf.float32), tf.cast(key, tf.float32)
    scores = tf.matmul(query, key, transpose_b=True)  # (B, H, T, T)
    scores *= (channels // heads) ** -0.5
    position = tf.range(length)
    visible = position[:, None] >= position[None, :]
    scores = tf.where(visible, scores, -1e9)
    weights = drop(tf.cast(tf.nn.softmax(scores), x.dtype))
    mixed = tf.transpose(tf.matmul(weights, value), [0, 2, 1, 3])
    return _project(layer.c_proj, tf.reshape(mixed, [batch, length, channels]))


def _project(layer: tf_keras.layers.Layer, x: tf.Tensor) -> tf.Tensor:
    """A TFConv1D: [B, T, C] x [C, D] + [1, D]."""
    product = tf.tensordot(x, tf.cast(layer.weight, x.dtype), 1)
    return product + tf.cast(layer.bias, x.dtype)


def _layer_norm(layer: tf_keras.layers.Layer, x: tf.Tensor) -> tf.Tensor:
    x32 = tf.cast(x, tf.float32)
    mean, variance = tf.nn.moments(x32, -1, keepdims=True)
    normal = (x32 - mean) * tf.math.rsqrt(variance + layer.epsilon)
    return tf.cast(normal * layer.gamma + layer.beta, x.dtype)
