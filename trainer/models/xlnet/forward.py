"""XLNet's forward pass, with one or two streams.

The content stream has a state of each token, which has seen the token itself. The query
stream has a state of each target, which has seen its place only, and predicts it.

Matrix products and activations between the layers are in `dtype`; attention scores,
softmax, layer norm, logits and loss are in float32.

Source: Yang et al., "XLNet" (2019), https://arxiv.org/abs/1906.08237, section 2.3, and
Dai et al., "Transformer-XL" (2019), https://arxiv.org/abs/1901.02860, section 3.3.

Dimensions: B sequences, T tokens, P targets, N tokens or targets, C channels, H heads
of D = C/H channels, I inner channels, V ids of the vocabulary.
"""

import functools
from collections.abc import Mapping

import tensorflow as tf
from transformers.activations_tf import get_tf_activation

from trainer.models.architecture import DEFAULT_OPTIONS, Options
from trainer.models.gpt2.forward import embed
from trainer.models.layers.dropout import NO_DROPOUT, Dropout
from trainer.models.layers.recompute import rematerialize
from trainer.models.xlnet.configuration import LimitedXLNetConfig
from trainer.models.xlnet.weights import BIAS, MASK, TABLE, XLNet, layer_prefix

# Dropout sites before the layers: the two streams' inputs, and their output.
_FIRST_SITE = 3
# Of a stream in a layer: attention weights, attention's output, two of the MLP.
_SITES_PER_STREAM = 4

Weights = Mapping[str, tf.Tensor]


def hidden_states(
    model: XLNet,
    tokens: tf.Tensor,
    options: Options = DEFAULT_OPTIONS,
    dropout: Dropout = NO_DROPOUT,
) -> tf.Tensor:
    """Runs the content stream, in which every token sees every token.

    Args:
      model: owns the weights.
      tokens: int32 [B, T].
      options: how to compute.
      dropout: applied as in `target_states`.

    Returns:
      `dtype` [B, T, C + 1].
    """
    unseen = tf.zeros([1, tokens.shape[1], tokens.shape[1]], tf.bool)
    return _run(model, tokens, unseen, None, options, dropout)


def target_states(
    model: XLNet,
    tokens: tf.Tensor,
    unseen: tf.Tensor,
    targets: tf.Tensor,
    options: Options = DEFAULT_OPTIONS,
    dropout: Dropout = NO_DROPOUT,
) -> tf.Tensor:
    """Runs both streams; returns the states that predict the targets.

    Args:
      model: owns the weights.
      tokens: int32 [B, T].
      unseen: bool [B, T, T]: whether token i must not see token j. In the content
        stream each token sees itself all the same.
      targets: bool [B, P, T]: the place of each target. A row without a place is a
        target that does not count.
      options: how to compute.
      dropout: applied wherever XLNet has dropout, but for the positions' encodings:
        with noise of their own, they would have to be multiplied for each row.

    Returns:
      `dtype` [B, P, C + 1].
    """
    return _run(model, tokens, unseen, targets, options, dropout)


def output_table(model: XLNet) -> tf.Tensor:
    """Returns the token embedding and the logits' biases, float32 [V, C + 1]."""
    table, bias = (tf.convert_to_tensor(model.by_name[name]) for name in (TABLE, BIAS))
    return tf.concat([table, bias[:, None]], axis=1)


def _run(
    model: XLNet,
    tokens: tf.Tensor,
    unseen: tf.Tensor,
    targets: tf.Tensor | None,
    options: Options,
    dropout: Dropout,
) -> tf.Tensor:
    """Runs the network; returns the states of the last stream, and a column of ones."""
    config = model.config
    x = embed(tf.convert_to_tensor(model.by_name[TABLE]), tokens)
    streams: tuple[tf.Tensor, ...] = (dropout(tf.cast(x, options.dtype), 0),)
    if targets is not None:
        mask = tf.convert_to_tensor(model.by_name[MASK])
        shape = [*targets.shape[:2], config.d_model]
        mask = tf.broadcast_to(tf.cast(mask, options.dtype), shape)
        streams += (dropout(mask, 1),)  # (B, P, C)
    positions = _encode_positions(tokens.shape[1], config.d_model)
    for index in range(config.n_layer):
        layer = functools.partial(
            _layer,
            config=config,
            options=options,
            rate=dropout.rate,
            site=_FIRST_SITE + index * 2 * _SITES_PER_STREAM,
            # Nothing reads the content stream's last states beside the query stream's.
            first=int(index == config.n_layer - 1 and targets is not None),
        )
        if options.remat == "block":
            layer = functools.partial(rematerialize, layer, compiled=options.compiled)
        prefix = layer_prefix(index)
        weights = {
            name.removeprefix(prefix): tf.convert_to_tensor(variable)
            for name, variable in model.by_name.items()
            if name.startswith(prefix) and variable.trainable
        }
        masks = (unseen,) if targets is None else (unseen, targets)
        streams = layer(streams, weights, positions, masks, dropout.keys)
    states = dropout(streams[-1], 2)
    return tf.concat([states, tf.ones_like(states[:, :, :1])], axis=2)


def _encode_positions(length: int, channels: int) -> tf.Tensor:
    """Returns the encodings of the distances T to 1 - T, float32 [2T, C]."""
    distance = tf.range(length, -length, -1.0)
    frequency = 10000 ** (-tf.range(0.0, channels, 2.0) / channels)
    angle = distance[:, None] * frequency
    return tf.concat([tf.sin(angle), tf.cos(angle)], axis=1)


def _layer(
    streams: tuple[tf.Tensor, ...],
    weights: Weights,
    positions: tf.Tensor,
    masks: tuple[tf.Tensor, ...],
    keys: tf.Tensor,
    *,
    config: LimitedXLNetConfig,
    options: Options,
    rate: float,
    site: int,
    first: int,
) -> tuple[tf.Tensor, ...]:
    """Computes a layer of one or two streams, of which those from `first` go on."""
    dropout = Dropout(rate, keys, options.compiled)
    heads = (config.n_head, config.d_head)
    content = streams[0]

    def project(x: tf.Tensor, name: str) -> tf.Tensor:
        y = tf.einsum("bnc,cd->bnd", x, tf.cast(weights[f"rel_attn.{name}"], x.dtype))
        return tf.reshape(y, [*y.shape[:2], *heads])

    relative = project(positions[None], "r")[0]  # (2T, H, D)
    key, value = project(content, "k"), project(content, "v")  # (B, T, H, D)
    biases = [
        tf.reshape(weights[f"rel_attn.r_{name}_bias"], heads) for name in ("w", "r")
    ]
    outputs = []
    for number, x in list(enumerate(streams))[first:]:
        place = site + number * _SITES_PER_STREAM
        query, unseen = project(x, "q"), masks[0]  # (B, N, H, D)
        if number == 0:
            unseen &= ~tf.eye(unseen.shape[-1], dtype=tf.bool)
        else:
            # Queries stand at the places of their tokens, whose distances are known.
            targets = tf.cast(masks[1], x.dtype)
            query = tf.einsum("bphd,bpt->bthd", query, targets)
        attend = functools.partial(_attention, options=options, rate=rate, site=place)
        if options.remat == "attention":
            attend = functools.partial(rematerialize, attend, compiled=options.compiled)
        mixed = attend(query, key, value, relative, tuple(biases), unseen, keys)
        if number == 1:
            mixed = tf.einsum("bthd,bpt->bphd", mixed, targets)
        mixed = tf.reshape(mixed, [*x.shape[:2], config.d_model])
        out = tf.cast(weights["rel_attn.o"], x.dtype)
        out = dropout(tf.einsum("bnd,cd->bnc", mixed, out), place + 1)
        x = _layer_norm(x + out, weights, "rel_attn", config)
        outputs.append(_mlp(x, weights, config, dropout, place + 2))
    return tuple(outputs)


def _mlp(
    x: tf.Tensor,
    weights: Weights,
    config: LimitedXLNetConfig,
    dropout: Dropout,
    site: int,
) -> tf.Tensor:
    activation = get_tf_activation(config.ff_activation)
    inner = activation(_affine(x, weights, "ff.layer_1"))  # (B, N, I)
    out = _affine(dropout(inner, site), weights, "ff.layer_2")
    return _layer_norm(x + dropout(out, site + 1), weights, "ff", config)


def _attention(
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    relative: tf.Tensor,
    biases: tuple[tf.Tensor, tf.Tensor],
    unseen: tf.Tensor,
    keys: tf.Tensor,
    *,
    options: Options,
    rate: float,
    site: int,
) -> tf.Tensor:
    """Returns what each token reads of the others, `dtype` [B, T, H, D].

    Args:
      query: `dtype` [B, T, H, D].
      key: `dtype` [B, T, H, D].
      value: `dtype` [B, T, H, D].
      relative: float32 [2T, H, D], the distances' keys.
      biases: float32 [H, D], of the content's and of the distances' scores.
      unseen: bool [B, T, T].
      keys: uint32 [B], of the dropout.
      options: how to compute.
      rate: of the dropout.
      site: of the dropout.
    """
    batch, length, num_heads, depth = query.shape
    query, key = tf.cast(query, tf.float32), tf.cast(key, tf.float32)
    with tf.name_scope("attention"):  # a part of a plan
        scores = tf.einsum("bqhd,bkhd->bhqk", query + biases[0], key)
        distances = tf.einsum("bqhd,mhd->bhqm", query + biases[1], relative)
        # Of query q and key k the distance q - k has the index T - q + k of 2T. With a
        # row less, in rows that are shorter by one, it is at k.
        shape = [batch, num_heads, 2 * length, length]
        distances = tf.reshape(distances, shape)[:, :, 1:]
        distances = tf.reshape(distances, [batch, num_heads, length, 2 * length - 1])
        scores = (scores + distances[..., :length]) * depth**-0.5
        attended = tf.nn.softmax(tf.where(unseen[:, None], -1e9, scores))
        dropout = Dropout(rate, keys, options.compiled)
        attended = dropout(tf.cast(attended, value.dtype), site)
        return tf.einsum("bhqk,bkhd->bqhd", attended, value)


def _affine(x: tf.Tensor, weights: Weights, name: str) -> tf.Tensor:
    weight = tf.cast(weights[f"{name}.weight"], x.dtype)  # (out, in)
    bias = tf.cast(weights[f"{name}.bias"], x.dtype)
    return tf.einsum("bni,oi->bno", x, weight) + bias


def _layer_norm(
    x: tf.Tensor, weights: Weights, part: str, config: LimitedXLNetConfig
) -> tf.Tensor:
    with tf.name_scope("layer_norm"):
        x32 = tf.cast(x, tf.float32)
        mean, variance = tf.nn.moments(x32, -1, keepdims=True)
        scale = weights[f"{part}.layer_norm.weight"]
        shift = weights[f"{part}.layer_norm.bias"]
        normal = (x32 - mean) * tf.math.rsqrt(variance + config.layer_norm_eps)
        return tf.cast(normal * scale + shift, x.dtype)
