"""The weights of an ALGPT2, and their way to those of a GPT-2 and back.

Dimensions: C channels, V ids of the vocabulary, E columns of the token embedding.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tf_keras
from transformers import TFGPT2LMHeadModel
from transformers.models.gpt2.modeling_tf_gpt2 import TFBlock

from configs.errors import UserError
from trainer.models import lora
from trainer.models.algpt2.configuration import (
    ALGPT2Config,
    gpt2_configuration,
    load_configuration,
)
from trainer.models.gpt2 import weights as gpt2_weights

# Of a block's or a table's largest value; float32 rounds at 6e-8.
_TOLERANCE = 1e-5


class ALGPT2(tf_keras.Model):
    """Owns the weights: `table` [V, E], `projection` [E, C], `positions`, one `block`.

    Args:
      config: the shape.
    """

    def __init__(self, config: ALGPT2Config):
        super().__init__(name="algpt2")
        self.config = config
        sizes = (config.vocab_size, config.embedding_size, config.n_embd)
        self.table = self.add_weight("table", sizes[:2])
        self.projection = self.add_weight("projection", sizes[1:])
        self.positions = self.add_weight("positions", [config.n_positions, sizes[2]])
        self.block = TFBlock(config, scale=True, name="block")
        with tf.name_scope("block"):
            self.block.build()
        self.last_norm = tf_keras.layers.LayerNormalization(
            epsilon=config.layer_norm_epsilon, name="last_norm"
        )
        self.last_norm.build([None, None, config.n_embd])


def initialize(model: ALGPT2, seed: int) -> None:
    """Assigns random weights that depend on `seed` alone, not on the strategy.

    As GPT-2's, with a projection of unit gain: the product of the two embedding
    matrices has the deviation of GPT-2's embedding.
    """
    gpt2_weights.initialize(model, seed)
    gain = model.config.embedding_size**-0.5 / model.config.initializer_range
    model.projection.assign(model.projection * gain)


def resize_vocabulary(model: ALGPT2, rows: Sequence[Sequence[int]]) -> ALGPT2:
    """Returns a model of another vocabulary; see `Architecture`."""
    values = model.config.to_dict()
    extended = ALGPT2(ALGPT2Config.from_dict({**values, "vocab_size": len(rows)}))
    gpt2_weights.copy_with_new_rows(model, extended, extended.table, rows)
    return extended


def as_transformers(
    model: ALGPT2, into: TFGPT2LMHeadModel | None = None
) -> TFGPT2LMHeadModel:
    """Returns the GPT-2 that computes the same: every layer has a copy of the block.

    Args:
      model: whose weights are copied.
      into: is assigned to and returned; None: a new one.
    """
    gpt2 = into or gpt2_weights.build(gpt2_configuration(model.config))
    transformer = gpt2.transformer
    transformer.wte.embeddings.assign(tf.matmul(model.table, model.projection))
    transformer.wpe.embeddings.assign(model.positions)
    pairs = [(layer, model.block) for layer in transformer.h]
    for theirs, mine in (*pairs, (transformer.ln_f, model.last_norm)):
        for variable, value in zip(theirs.variables, lora.merged(mine), strict=True):
            variable.assign(value)
    return gpt2


def load(checkpoint: str) -> ALGPT2:
    """Loads an ALGPT2 that was exported as a GPT-2.

    Raises:
      UserError: the checkpoint does not load, or its layers or its embedding are not
        those of an ALGPT2.
    """
    gpt2 = gpt2_weights.load(checkpoint)
    model = ALGPT2(load_configuration(checkpoint))
    first, *others = (layer.variables for layer in gpt2.transformer.h)
    for layer in others:
        for mine, other in zip(first, layer, strict=True):
            if not np.array_equal(mine, other):
                raise UserError(
                    f"The layers of {checkpoint} must be equal, as ALGPT2's are. Use "
                    "`model.architecture=gpt2`."
                )
    for mine, other in zip(model.block.variables, first, strict=True):
        mine.assign(other)
    for mine, other in zip(
        model.last_norm.variables, gpt2.transformer.ln_f.variables, strict=True
    ):
        mine.assign(other)
    model.positions.assign(gpt2.transformer.wpe.embeddings)
    _factorize(gpt2.transformer.wte.embeddings.numpy(), model, checkpoint)
    return model


def _factorize(embedding: np.ndarray, model: ALGPT2, checkpoint: str) -> None:
    """Assigns [V, E] and [E, C], whose product is an embedding [V, C] of rank E."""
    exact = embedding.astype(np.float64)
    # Its right singular vectors, the largest last.
    _, vectors = np.linalg.eigh(exact.T @ exact)
    projection = vectors[:, -model.config.embedding_size :].T
    table = exact @ projection.T
    error = np.abs(table @ projection - exact).max()
    if error > _TOLERANCE * np.abs(exact).max():
        raise UserError(
            f"The token embedding of {checkpoint} must be a product of matrices with "
            f"{model.config.embedding_size} columns and rows, as ALGPT2's is. Use "
            "`model.architecture=gpt2`."
        )
    model.table.assign(table)
    model.projection.assign(projection)
