"""The weights of an XLNet, by PyTorch's names, and their way to transformers' model.

Dimensions: C channels, V ids of the vocabulary, H heads of D = C/H channels, I inner
channels.
"""

import math
from collections.abc import Sequence

import tensorflow as tf
import tf_keras
from transformers import TFXLNetLMHeadModel
from transformers.modeling_tf_pytorch_utils import (
    convert_tf_weight_name_to_pt_weight_name,
)

from trainer.models import pretrained_weights, variables
from trainer.models.xlnet import configuration

TABLE = "transformer.word_embedding.weight"
MASK = "transformer.mask_emb"
BIAS = "lm_loss.bias"
# Of segments of a text, which no task here has. They are kept for the export.
_UNUSED = ("rel_attn.r_s_bias", "rel_attn.seg_embed")


def layer_prefix(index: int) -> str:
    """Returns what the names of a layer's weights begin with."""
    return f"transformer.layer.{index}."


def shapes(config: configuration.LimitedXLNetConfig) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each weight in PyTorch, by its name there."""
    channels, inner = config.d_model, config.d_inner
    heads = (config.n_head, config.d_head)
    layer = {
        **{f"rel_attn.{name}": (channels, *heads) for name in "qkvor"},
        **{f"rel_attn.r_{name}_bias": heads for name in "rsw"},
        "rel_attn.seg_embed": (2, *heads),
        "ff.layer_1.weight": (inner, channels),
        "ff.layer_1.bias": (inner,),
        "ff.layer_2.weight": (channels, inner),
        "ff.layer_2.bias": (channels,),
        **{
            f"{part}.layer_norm.{name}": (channels,)
            for part in ("rel_attn", "ff")
            for name in ("weight", "bias")
        },
    }
    return {
        TABLE: (config.vocab_size, channels),
        MASK: (1, 1, channels),
        BIAS: (config.vocab_size,),
        **{
            layer_prefix(index) + name: shape
            for index in range(config.n_layer)
            for name, shape in layer.items()
        },
    }


class XLNet(tf_keras.Model):
    """Owns the weights: matrices and vectors, which is what optimizers know.

    PyTorch's [C, H, D] is [C, H D] here, and its [H, D] is [H D].

    Args:
      config: the shape.
    """

    def __init__(self, config: configuration.LimitedXLNetConfig):
        super().__init__(name="xlnet")
        self.config = config
        self.by_name = {
            name: self.add_weight(
                name, _own_shape(name, shape), trainable=not name.endswith(_UNUSED)
            )
            for name, shape in shapes(config).items()
        }


def _own_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if name == MASK or name.endswith("bias"):
        return (math.prod(shape),)
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else shape


def initialize(model: XLNet, seed: int) -> None:
    """Assigns random weights that depend on `seed` alone, not on the strategy.

    Source: XLNet's code: N(0, 0.02) for all but biases and layer norms.
    """
    stddev = model.config.initializer_range
    for index, (name, variable) in enumerate(model.by_name.items()):
        shape = variable.shape
        if name.endswith("layer_norm.weight"):
            variable.assign(tf.ones(shape))
        elif name.endswith("bias"):
            variable.assign(tf.zeros(shape))
        else:
            variable.assign(
                tf.random.stateless_normal(shape, [seed, index], stddev=stddev)
            )


def load(checkpoint: str) -> XLNet:
    """Loads a Hugging Face folder or name.

    Raises:
      UserError: the checkpoint does not exist, or is not that of a whole XLNet.
    """
    model = XLNet(configuration.load_configuration(checkpoint))
    pretrained_weights.assign(
        model.by_name,
        checkpoint,
        kind="XLNet",
        tied=("lm_loss.weight", TABLE),
        shapes=shapes(model.config),
    )
    return model


def resize_vocabulary(model: XLNet, rows: Sequence[Sequence[int]]) -> XLNet:
    """Returns a model of another vocabulary; see `Architecture`."""
    values = {**model.config.to_dict(), "vocab_size": len(rows)}
    extended = XLNet(configuration.LimitedXLNetConfig.from_dict(values))
    for name, variable in extended.by_name.items():
        value = tf.convert_to_tensor(model.by_name[name])
        if name in (TABLE, BIAS):
            value = variables.means_of_rows(value, rows)
        variable.assign(value)
    return extended


def as_transformers(
    model: XLNet, into: TFXLNetLMHeadModel | None = None
) -> TFXLNetLMHeadModel:
    """Returns transformers' model with the same weights, which generates.

    Args:
      model: whose weights are copied.
      into: is assigned to and returned; None: a new one.
    """
    theirs = into
    if theirs is None:
        theirs = TFXLNetLMHeadModel(model.config)
        theirs.build_in_name_scope()
    pytorch_shapes = shapes(model.config)
    for variable in theirs.variables:
        name, transposed = convert_tf_weight_name_to_pt_weight_name(
            variable.name, tf_weight_shape=variable.shape
        )
        value = tf.reshape(model.by_name[name], pytorch_shapes[name])
        variable.assign(tf.transpose(value) if transposed.value != "no" else value)
    return theirs
