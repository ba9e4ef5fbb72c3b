"""LoRA: trains small matrices beside the frozen weights of projections.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (2021),
https://arxiv.org/abs/2106.09685, section 4.1: x W becomes x W + (alpha / R) x A B, and
A and B alone are trained. Their first values are those of the authors' code.

An adapter is part of its projection's layer. So any architecture whose forward reads
TFConv1D through `matrices` and `low_rank` can be trained like this.

Dimensions: B sequences, T tokens, C channels in, D channels out, R the rank.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import tensorflow as tf
import tf_keras
from transformers.modeling_tf_utils import TFConv1D

from configs.errors import UserError
from configs.schema import LoraConfig
from trainer.models.classifier import head_of
from trainer.models.layers.dropout import Dropout
from trainer.models.variables import kind_of, name_of, select


class Adapter(tf_keras.layers.Layer):
    """Owns the matrices beside one projection: `down` [C, R], A, and `up` [R, D], B.

    Args:
      projection: built, [C, D].
      settings: rank, scale and dropout.
    """

    def __init__(self, projection: TFConv1D, settings: LoraConfig):
        super().__init__()
        self.settings = settings
        self.scale = settings.alpha / settings.rank
        scope = projection.weight.name.rpartition("/")[0]
        rows, columns = projection.weight.shape
        self.down = self.add_weight(f"{scope}/lora_a", [rows, settings.rank])
        self.up = self.add_weight(
            f"{scope}/lora_b", [settings.rank, columns], None, "zeros"
        )


def projections(model: tf_keras.Model) -> dict[str, TFConv1D]:
    """Returns the layers that can have an adapter, by PyTorch's names."""
    layers = (layer for layer in model.submodules if isinstance(layer, TFConv1D))
    return {name_of(layer.weight).removesuffix(".weight"): layer for layer in layers}


def attach(model: tf_keras.Model, settings: LoraConfig, seed: int) -> None:
    """Adds adapters, which at first add nothing; without a rank there are none.

    Args:
      model: built; under the strategy's scope.
      settings: which projections get one, and how large it is.
      seed: of their values.

    Raises:
      UserError: the targets match nothing, or the rank exceeds a projection's.
    """
    if not settings.rank:
        return
    layers = projections(model)
    names = select("model.lora.targets", settings.targets, list(layers))
    for index, name in enumerate(names):
        shape = layers[name].weight.shape
        if settings.rank > min(shape):
            raise UserError(
                "`model.lora.rank` must not exceed the rows or columns of a target. "
                f"Received: {settings.rank}, and {name} of {list(shape)}. Lower it, or "
                "change `model.lora.targets`."
            )
        adapter = Adapter(layers[name], settings)
        # Other seeds than those of the model's own weights.
        seeds, bound = [seed, -1 - index], shape[0] ** -0.5
        adapter.down.assign(
            tf.random.stateless_uniform(adapter.down.shape, seeds, -bound, bound)
        )
        layers[name].adapter = adapter


def adapter_of(projection: TFConv1D) -> Adapter | None:
    """Returns a projection's adapter, where it has one."""
    return getattr(projection, "adapter", None)


def adapters(model: tf_keras.Model) -> list[tf.Variable]:
    """Returns the variables of all adapters; none without LoRA."""
    owners = map(adapter_of, projections(model).values())
    return [variable for owner in owners if owner for variable in owner.variables]


def trained(model: tf_keras.Model) -> list[tf.Variable]:
    """Returns what is trained beside frozen weights; none without LoRA.

    That are the adapters, and a classifier's head, which starts from random values.
    """
    of_adapters = adapters(model)
    return [*of_adapters, *head_of(model)] if of_adapters else []


def is_in_every_layer(model: tf_keras.Model) -> bool:
    """Returns whether all projections of some kind have an adapter."""
    kinds: dict[str, list[bool]] = {}
    for name, layer in projections(model).items():
        has_adapter = adapter_of(layer) is not None
        kinds.setdefault(kind_of(name), []).append(has_adapter)
    return any(map(all, kinds.values()))


def base(model: tf.Module) -> list[tf.Variable]:
    """Returns the variables that are no adapter's, in the order of the model's."""
    others = {id(variable) for variable in adapters(model)}
    return [variable for variable in model.variables if id(variable) not in others]


def merged(model: tf.Module) -> Iterator[tf.Tensor]:
    """Yields the values of `base`, to which the adapters are added."""
    owners = {id(layer.weight): layer for layer in projections(model).values()}
    for variable in base(model):
        value = tf.identity(variable)
        layer = owners.get(id(variable))
        if layer is not None and (factors := matrices(layer)):
            value += tf.matmul(*factors)
        yield value


def matrices(projection: TFConv1D) -> tuple[tf.Tensor, ...]:
    """Returns the adapter's A [C, R] and scaled B [R, D]; nothing without one."""
    adapter = adapter_of(projection)
    if adapter is None:
        return ()
    return tf.convert_to_tensor(adapter.down), adapter.scale * adapter.up


def dropout_of(
    dropout: Dropout, site: int, projection: TFConv1D, place: int
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the dropout of an adapter's inputs, which acts in training alone.

    Its sites are below those of the network.

    Args:
      dropout: of the network; without keys where it is not trained.
      site: of the network, the first of the block.
      projection: that may have an adapter.
      place: of the projection in its block, from 0 to 3.
    """
    adapter, rate = adapter_of(projection), 0.0
    if adapter is not None and isinstance(dropout.keys, tf.Tensor):
        rate = adapter.settings.dropout
    of_adapter = dataclasses.replace(dropout, rate=rate)
    return functools.partial(of_adapter, site=-(4 * site + place))


def low_rank(
    x: tf.Tensor,
    matrices: tuple[tf.Tensor, ...],
    product: str,
    drop: Callable[[tf.Tensor], tf.Tensor],
) -> tf.Tensor:
    """Returns what an adapter adds to its projection.

    Args:
      x: the projection's input.
      matrices: as `matrices` returns them.
      product: axes of the projection, such as "btc,cd->btd".
      drop: the dropout of the adapter's inputs.
    """
    down, up = (tf.cast(matrix, x.dtype) for matrix in matrices)
    inner = tf.einsum(f"{product[:3]},cr->btr", drop(x), down)
    return tf.einsum(f"btr,rd->{product[-3:]}", inner, up)
