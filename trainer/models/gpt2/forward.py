"""The forward pass for training and evaluation, over the weights of TFGPT2's layers.

Transformers owns weights, names, saving and `generate`. This forward pass has static
shapes and computes the causal mask on the fly. Matrix products and activations between
the layers are in `dtype`, and so are the exponentials of the softmax; attention scores,
sums of the softmax, layer norm, logits and loss are in float32.

Dimensions: B sequences, T tokens, C channels, H heads, V ids of the vocabulary; Q
queries of a block, and the K keys that they attend to.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf
import tf_keras
from transformers import TFGPT2LMHeadModel

from trainer.models import lora
from trainer.models.architecture import DEFAULT_OPTIONS, Options
from trainer.models.layers.attention import ROWS, TOKENS_LAST, attention
from trainer.models.layers.documents import Documents, find_documents
from trainer.models.layers.dropout import NO_DROPOUT, Dropout
from trainer.models.layers.recompute import fuse, optimization_barrier, rematerialize

# Queries of a block. All queries against all keys would be twice the work and memory,
# half of it masked.
QUERY_BLOCK = 256
# Dropout sites of a block: attention weights, and two projections.
_SITES_PER_BLOCK = 3


class Affine(NamedTuple):
    """Scale and shift of a layer norm, [C]; or a projection's [C, D] and [1, D]."""

    weight: tf.Tensor
    bias: tf.Tensor
    adapter: tuple[tf.Tensor, ...] = ()  # of a projection: (C, R) and (R, D)


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
    documents: Documents | None = None,
) -> tf.Tensor:
    """Runs the network up to and including the last layer norm.

    Args:
      model: owns the weights.
      tokens: int32 [B, T]. Padding is at the end, where no real token attends to it.
      options: how to compute.
      dropout: applied wherever GPT-2 has dropout.
      documents: of the records; None: those that `options.end_token` ends.

    Returns:
      `dtype` [B, T, C].
    """
    transformer = model.transformer
    with tf.name_scope("embedding"):  # these names are parts of a plan
        x = embed(output_table(model), tokens)  # (B, T, C)
    if documents is None:
        documents = find_documents(tokens, options.end_token)
    x += embed_positions(transformer.wpe.embeddings, tokens.shape[1], documents)
    return run_layers(x, transformer.h, transformer.ln_f, options, dropout, documents)


def run_layers(
    x: tf.Tensor,
    layers: Sequence[tf_keras.layers.Layer],
    last_norm: tf_keras.layers.LayerNormalization,
    options: Options,
    dropout: Dropout,
    documents: Documents | None,
) -> tf.Tensor:
    """Runs the blocks and the last layer norm.

    Args:
      x: float32 [B, T, C], embeddings of tokens and positions.
      layers: a TFBlock for each layer; the same one may come again.
      last_norm: the norm after the last block.
      options: how to compute.
      dropout: applied wherever GPT-2 has dropout.
      documents: of the records; None: a record is one text.

    Returns:
      `dtype` [B, T, C].
    """
    x = dropout(tf.cast(x, options.dtype), 0)
    for index, layer in enumerate(layers):
        block = functools.partial(
            _block,
            layer=layer,
            options=options,
            rate=dropout.rate,
            documents=documents,
            site=1 + index * _SITES_PER_BLOCK,
        )
        if options.remat == "block":
            x = rematerialize(
                block, x, block_weights(layer), dropout.keys, compiled=options.compiled
            )
        else:
            x = block(x, block_weights(layer), dropout.keys)
    return fuse(
        layer_norm,
        x,
        affine(last_norm),
        fused=options.on_cpu,
        epsilon=last_norm.epsilon,
    )


def output_table(model: TFGPT2LMHeadModel) -> tf.Tensor:
    """Returns the token embedding, float32 [V, C], which also makes the logits."""
    return tf.convert_to_tensor(model.transformer.wte.embeddings)


@tf.custom_gradient
def embed(table: tf.Tensor, tokens: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Looks up embeddings, with a dense gradient: a table is tied to the output."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
        rows = tf.reshape(upstream, [-1, table.shape[1]])
        with tf.name_scope("embedding"):
            dense = tf.math.unsorted_segment_sum(
                rows, tf.reshape(tokens, [-1]), table.shape[0]
            )
        return dense, None

    return tf.gather(table, tokens), gradient


def embed_positions(
    table: tf.Variable, length: int, documents: Documents | None
) -> tf.Tensor:
    """Looks up the positions of T = `length` tokens.

    Args:
      table: float32 [P, C].
      length: tokens of a record.
      documents: of the records; None: a record is one text.

    Returns:
      float32 [T, C]; where positions begin anew with each document, [B, T, C].
    """
    if documents is None:
        return table[:length]
    return embed(tf.convert_to_tensor(table), documents.positions())


def block_weights(layer: tf_keras.layers.Layer) -> Block:
    """Reads the weights of a TFBlock, float32."""
    return Block(
        norm_1=affine(layer.ln_1),
        attention_in=affine(layer.attn.c_attn),
        attention_out=affine(layer.attn.c_proj),
        norm_2=affine(layer.ln_2),
        mlp_in=affine(layer.mlp.c_fc),
        mlp_out=affine(layer.mlp.c_proj),
    )


def affine(layer: tf_keras.layers.Layer) -> Affine:
    """Reads the weights of a layer norm or of a projection, float32."""
    if isinstance(layer, tf_keras.layers.LayerNormalization):
        return Affine(*map(tf.convert_to_tensor, (layer.gamma, layer.beta)))
    weight, bias = map(tf.convert_to_tensor, (layer.weight, layer.bias))
    return Affine(weight, bias, lora.matrices(layer))


def _block(
    x: tf.Tensor,
    weights: Block,
    keys: tf.Tensor,
    *,
    layer: tf_keras.layers.Layer,
    options: Options,
    rate: float,
    site: int,
    documents: Documents | None,
) -> tf.Tensor:
    """Computes one transformer block, `dtype` [B, T, C] -> [B, T, C]."""
    batch, length, channels = x.shape
    heads = layer.attn.n_head
    dropout = Dropout(rate, keys, options.compiled, options.on_cpu)
    drop = functools.partial(lora.dropout_of, dropout, site)
    project = functools.partial(_project, options=options)
    norm_of = functools.partial(fuse, layer_norm, fused=options.on_cpu)
    if options.compiled and options.remat == "block":
        weights = _depend_on(keys, weights)

    def query_key_value(x: tf.Tensor, norm: Affine, projection: Affine) -> list:
        x = norm_of(x, norm, epsilon=layer.ln_1.epsilon)
        to_heads = functools.partial(project, drop=drop(layer.attn.c_attn, 0))
        if options.on_cpu:
            return _heads_in_rows(to_heads(x, projection), heads)
        shape = [batch, heads, channels // heads, length]
        thirds = _split_qkv(projection)
        return [tf.reshape(to_heads(x, t, "btc,cd->bdt"), shape) for t in thirds]

    def expand(x: tf.Tensor, norm: Affine, projection: Affine) -> tf.Tensor:
        x = norm_of(x, norm, epsilon=layer.ln_2.epsilon)
        return project(x, projection, drop=drop(layer.mlp.c_fc, 2))

    def contract(x: tf.Tensor, projection: Affine) -> tf.Tensor:
        x = _activate(x, layer.mlp.act, options)
        return project(x, projection, drop=drop(layer.mlp.c_proj, 3))

    # The cheap operations before a product are computed again in the backward pass; the
    # product is not.
    cheap = functools.partial(rematerialize, compiled=options.compiled)
    parts = cheap(query_key_value, x, weights.norm_1, weights.attention_in)
    with tf.name_scope("attention"):
        mixed = attention(
            *parts,
            drop=lambda weights, first: dropout(
                weights, site + 2, whole=(heads, length, length), begin=(0, first, 0)
            ),
            keep=options.remat != "attention",
            compiled=options.compiled,
            query_block=_query_block(options),
            documents=documents,
            layout=ROWS if options.on_cpu else TOKENS_LAST,
        )
    mixed = _join_heads(
        mixed, weights.attention_out, drop(layer.attn.c_proj, 1), options
    )
    x += dropout(mixed, site)
    inner = cheap(expand, x, weights.norm_2, weights.mlp_in)  # (B, T, 4C)
    return x + dropout(cheap(contract, inner, weights.mlp_out), site + 1)


def _query_block(options: Options) -> int:
    """Returns how many queries attend at once."""
    if options.on_cpu:  # it multiplies few rows as fast, of which less is masked
        return QUERY_BLOCK // 2
    # A rematerialized block has each kernel twice. With smaller query blocks, the
    # program of XL would itself take gigabytes.
    return QUERY_BLOCK * (2 if options.remat == "block" else 1)


def _heads_in_rows(x: tf.Tensor, heads: int) -> list[tf.Tensor]:
    """Splits [B, T, 3C] into queries, keys and values, [B, H, T, D]."""
    batch, length, channels = x.shape
    x = tf.reshape(x, [batch, length, 3, heads, channels // heads // 3])
    return tf.unstack(tf.transpose(x, [2, 0, 3, 1, 4]))


def _join_heads(
    mixed: tf.Tensor,
    projection: Affine,
    drop: Callable[[tf.Tensor], tf.Tensor],
    options: Options,
) -> tf.Tensor:
    """Projects what all heads return, in the layout of `attention`, to [B, T, C]."""
    if not options.on_cpu:
        batch, heads, channels, length = mixed.shape
        columns = tf.reshape(mixed, [batch, heads * channels, length])
        return _project(columns, projection, "bct,cd->btd", drop, options=options)
    batch, heads, length, channels = mixed.shape
    rows = tf.transpose(mixed, [0, 2, 1, 3])
    rows = tf.reshape(rows, [batch, length, heads * channels])
    flip = functools.partial(tf.transpose, perm=[0, 2, 1])
    # An element has the same noise in each layout: it is numbered by [C, T].
    return _project(
        rows, projection, drop=lambda x: flip(drop(flip(x))), options=options
    )


def _activate(
    x: tf.Tensor, activation: Callable[[tf.Tensor], tf.Tensor], options: Options
) -> tf.Tensor:
    """Applies the activation; a CPU would round each of its operations to bfloat16."""
    if options.on_cpu:
        return fuse(_in_float32, x, fused=True, activation=activation)
    return activation(x)


def _in_float32(
    x: tf.Tensor, activation: Callable[[tf.Tensor], tf.Tensor]
) -> tf.Tensor:
    return tf.cast(activation(tf.cast(x, tf.float32)), x.dtype)


def _depend_on(keys: tf.Tensor, weights: Block) -> Block:
    """Returns the same weights, made to depend on the rows' keys.

    XLA would otherwise round all layers' weights to bfloat16 before the loop over
    microbatches, and keep them through it. A barrier on the weights themselves does not
    help: XLA rounds them before the barrier.
    """
    (one,), _ = optimization_barrier([tf.ones([])], [keys], compiled=True)
    return tf.nest.map_structure(lambda values: values * one, weights)


def _split_qkv(weights: Affine) -> list[Affine]:
    """Splits the fused projection into those of queries, keys and values."""
    parts = (tf.split(weights.weight, 3, axis=1), tf.split(weights.bias, 3, axis=1))
    adapters: list[tuple[tf.Tensor, ...]] = [()] * 3
    if weights.adapter:
        down, up = weights.adapter
        adapters = [(down, third) for third in tf.split(up, 3, axis=1)]
    return [Affine(*part) for part in zip(*parts, adapters, strict=True)]


def _project(
    x: tf.Tensor,
    weights: Affine,
    product: str = "btc,cd->btd",
    drop: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
    *,
    options: Options,
) -> tf.Tensor:
    """Computes a TFConv1D: [B, T, C] x [C, D] + [1, D], by the axes of `product`.

    `drop` is the dropout of its adapter's inputs, where it has one.
    """
    weight = tf.cast(weights.weight, x.dtype)
    if options.on_cpu:
        y = tf.matmul(tf.reshape(x, [-1, x.shape[2]]), weight)
        y = tf.reshape(y, [*x.shape[:2], y.shape[1]])
    else:
        y = tf.einsum(product, x, weight)
    if weights.adapter:
        y += lora.low_rank(x, weights.adapter, product, drop)
    return _add_bias(y, weights.bias[0], -2 if product.endswith("dt") else -1)


def _add_bias(x: tf.Tensor, bias: tf.Tensor, axis: int) -> tf.Tensor:
    """Adds a float32 bias [D] along an axis; its gradient is added up in float32."""
    shape = [1] * len(x.shape)
    shape[axis] = -1

    @tf.custom_gradient
    def add(x: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            others = [i for i in range(len(x.shape)) if i != axis % len(x.shape)]
            return upstream, tf.reduce_sum(tf.cast(upstream, tf.float32), others)

        return x + tf.cast(tf.reshape(bias, shape), x.dtype), gradient

    return add(x, bias)


def layer_norm(x: tf.Tensor, weights: Affine, epsilon: float) -> tf.Tensor:
    """Normalizes the channels, the last axis, in float32."""
    with tf.name_scope("layer_norm"):
        x32 = tf.cast(x, tf.float32)
        mean, variance = tf.nn.moments(x32, -1, keepdims=True)
        normal = (x32 - mean) * tf.math.rsqrt(variance + epsilon)
        return tf.cast(normal * weights.weight + weights.bias, x.dtype)
