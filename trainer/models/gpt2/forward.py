"""The training forward over TFGPT2's own layers.

Weights, names, saving and `generate` are transformers'. This reads the same layers'
weights with static shapes, a causal mask made on the fly, matrix products and what lies
between the layers in `dtype`, and attention scores, softmax, layer norm, logits and
loss in float32.

Dimensions: B sequences, T tokens, C channels, H heads, V ids of the vocabulary; Q
queries of a block, and the K keys that they may see.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
import tf_keras
from transformers import TFGPT2LMHeadModel

from trainer.models.architecture import DEFAULT_OPTIONS, Options
from trainer.models.layers.attention import attention
from trainer.models.layers.dropout import NO_DROPOUT, Dropout
from trainer.models.layers.recompute import hold, recomputed

# Queries that attend at once. All queries against all keys would be twice the work and
# memory, of which the mask hides half.
QUERY_BLOCK = 256
# A block's places of dropout: attention's weights, and two projections.
_SITES_PER_BLOCK = 3


class Affine(NamedTuple):
    """Scale and shift of a layer norm, [C]; or a projection's [C, D] and [1, D]."""

    weight: tf.Tensor
    bias: tf.Tensor


class Block(NamedTuple):
    """The weights of one transformer block."""

    norm_1: Affine
    attention_in: Affine  # (C, 3C): query, key, value
    attention_out: Affine  # (C, C)
    norm_2: Affine
    mlp_in: Affine  # (C, 4C)
    mlp_out: Affine  # (4C, C)


def hidden_states(
    model: TFGPT2LMHeadModel,
    tokens: tf.Tensor,
    options: Options = DEFAULT_OPTIONS,
    dropout: Dropout = NO_DROPOUT,
) -> tf.Tensor:
    """Runs the network up to the last layer norm.

    Args:
      model: whose weights are read.
      tokens: int32 [B, T]. Padding stands at the end, where no real token sees it.
      options: how.
      dropout: at every place where GPT-2 has dropout.

    Returns:
      `dtype` [B, T, C].
    """
    transformer = model.transformer
    x = _embed(embedding_table(model), tokens)  # (B, T, C)
    x += transformer.wpe.embeddings[: tokens.shape[1]]
    x = dropout(tf.cast(x, options.dtype), 0)
    for index, layer in enumerate(transformer.h):
        block = functools.partial(
            _block,
            layer=layer,
            options=options,
            rate=dropout.rate,
            site=1 + index * _SITES_PER_BLOCK,
        )
        if options.remat == "block":
            x = recomputed(
                block, x, _weights(layer), dropout.keys, compiled=options.compiled
            )
        else:
            x = block(x, _weights(layer), dropout.keys)
    return _layer_norm(x, _affine(transformer.ln_f), transformer.ln_f.epsilon)


def embedding_table(model: TFGPT2LMHeadModel) -> tf.Tensor:
    """Returns float32 [V, C], which looks tokens up and makes the logits."""
    return tf.convert_to_tensor(model.transformer.wte.embeddings)


@tf.custom_gradient
def _embed(table: tf.Tensor, tokens: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Looks tokens up. The table also makes the logits, so its gradient is dense."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
        rows = tf.reshape(upstream, [-1, table.shape[1]])
        dense = tf.math.unsorted_segment_sum(
            rows, tf.reshape(tokens, [-1]), table.shape[0]
        )
        return dense, None

    return tf.gather(table, tokens), gradient


def _weights(layer: tf_keras.layers.Layer) -> Block:
    """Reads the weights of a TFBlock, float32."""
    return Block(
        norm_1=_affine(layer.ln_1),
        attention_in=_affine(layer.attn.c_attn),
        attention_out=_affine(layer.attn.c_proj),
        norm_2=_affine(layer.ln_2),
        mlp_in=_affine(layer.mlp.c_fc),
        mlp_out=_affine(layer.mlp.c_proj),
    )


def _affine(layer: tf_keras.layers.Layer) -> Affine:
    if isinstance(layer, tf_keras.layers.LayerNormalization):
        return Affine(*map(tf.convert_to_tensor, (layer.gamma, layer.beta)))
    return Affine(*map(tf.convert_to_tensor, (layer.weight, layer.bias)))


def _block(
    x: tf.Tensor,
    weights: Block,
    keys: tf.Tensor,
    *,
    layer: tf_keras.layers.Layer,
    options: Options,
    rate: float,
    site: int,
) -> tf.Tensor:
    """One transformer block, `dtype` [B, T, C] -> [B, T, C]."""
    batch, length, channels = x.shape
    heads = layer.attn.n_head
    dropout = Dropout(rate, keys, options.compiled)
    if options.compiled and options.remat == "block":
        weights = _not_before(keys, weights)

    def query_key_value(x: tf.Tensor, norm: Affine, projection: Affine) -> list:
        x = _layer_norm(x, norm, layer.ln_1.epsilon)
        return [
            tf.reshape(
                _project(x, third, "btc,cd->bdt"),
                [batch, heads, channels // heads, length],
            )
            for third in _thirds(projection)
        ]

    def expand(x: tf.Tensor, norm: Affine, projection: Affine) -> tf.Tensor:
        return _project(_layer_norm(x, norm, layer.ln_2.epsilon), projection)

    def contract(x: tf.Tensor, projection: Affine) -> tf.Tensor:
        return _project(layer.mlp.act(x), projection)

    # What comes before a product is computed again for the gradient, which costs
    # little; the product is not.
    cheap = functools.partial(recomputed, compiled=options.compiled)
    query, key, value = cheap(query_key_value, x, weights.norm_1, weights.attention_in)
    mixed = attention(
        query,
        key,
        value,
        drop=lambda weights, first: dropout(
            weights, site + 2, whole=(heads, length, length), begin=(0, first, 0)
        ),
        keep=options.remat != "attention",
        compiled=options.compiled,
        # A block that is computed again has each kernel once more. With smaller blocks
        # of queries, the program of XL would take gigabytes itself.
        query_block=QUERY_BLOCK * (2 if options.remat == "block" else 1),
    )
    mixed = tf.reshape(mixed, [batch, channels, length])
    x += dropout(_project(mixed, weights.attention_out, "bct,cd->btd"), site)
    inner = cheap(expand, x, weights.norm_2, weights.mlp_in)  # (B, T, 4C)
    return x + dropout(cheap(contract, inner, weights.mlp_out), site + 1)


def _not_before(keys: tf.Tensor, weights: Block) -> Block:
    """Returns the same weights, which to XLA depend on the rows' keys.

    XLA would round all layers' weights to bfloat16 before the loop over microbatches,
    and keep them through it. To hold the weights themselves is no help: it rounds them
    before they are held.
    """
    (one,), _ = hold([tf.ones([])], [keys], compiled=True)
    return tf.nest.map_structure(lambda values: values * one, weights)


def _thirds(weights: Affine) -> list[Affine]:
    """Splits the projection that makes queries, keys and values."""
    parts = (tf.split(weights.weight, 3, axis=1), tf.split(weights.bias, 3, axis=1))
    return [Affine(*part) for part in zip(*parts, strict=True)]


def _project(x: tf.Tensor, weights: Affine, product: str = "btc,cd->btd") -> tf.Tensor:
    """A TFConv1D: [B, T, C] x [C, D] + [1, D], with the axes that `product` says."""
    bias = weights.bias[0]
    if product.endswith("dt"):
        bias = bias[:, None]
    y = tf.einsum(product, x, tf.cast(weights.weight, x.dtype))
    return y + tf.cast(bias, x.dtype)


def _layer_norm(x: tf.Tensor, weights: Affine, epsilon: float) -> tf.Tensor:
    x32 = tf.cast(x, tf.float32)
    mean, variance = tf.nn.moments(x32, -1, keepdims=True)
    normal = (x32 - mean) * tf.math.rsqrt(variance + epsilon)
    return tf.cast(normal * weights.weight + weights.bias, x.dtype)
