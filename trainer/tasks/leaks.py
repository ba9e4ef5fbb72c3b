"""Refuses a model that sees what it is to predict.

Such a model learns to copy: its perplexity goes to 1, on any text, and what it
generates is garbage.
"""

import numpy as np
import tensorflow as tf
from transformers import PretrainedConfig

from configs.errors import UserError
from trainer.models.architecture import DEFAULT_OPTIONS, Architecture
from trainer.models.layers import noise
from trainer.models.layers.dropout import Dropout
from trainer.runtime import strategy as strategies
from trainer.tasks.task import Task

# Of the model that is checked. What a prediction sees does not depend on sizes.
_SIZES = {"n_layer": 2, "vocab_size": 64}
_NUM_TOKENS = 12
# Of the largest value of a state. Rounding is below 1e-5, and a leak far above 1e-3.
_TOLERANCE = 1e-4


def check(
    architecture: Architecture,
    task: Task,
    configuration: PretrainedConfig,
    sequence_length: int,
) -> None:
    """Changes one token after the other, and compares the predictions.

    It computes two layers of the same configuration, with random weights, on the host:
    in two, a token can be seen by way of another. So it costs a small part of what
    building the model does.

    Args:
      architecture: of the model.
      task: that it learns.
      configuration: of the model.
      sequence_length: tokens of a record.

    Raises:
      UserError: a prediction depends on a token that it must not see.
    """
    if task.predictions is None:
        return
    values = configuration.to_dict()
    small = {k: min(values[k], size) for k, size in _SIZES.items() if k in values}
    length = min(sequence_length, _NUM_TOKENS)
    with strategies.on_host():
        model = architecture.build(
            architecture.configuration_class.from_dict({**values, **small})
        )
        for index, variable in enumerate(model.variables):
            variable.assign(
                tf.random.stateless_normal(variable.shape, [0, index], stddev=0.1)
            )
        # Row 0 as it is; in row t + 1, token t is another.
        tokens = tf.random.stateless_uniform(
            [length], [1, 1], 0, small["vocab_size"] - 1, tf.int32
        )
        tokens += tf.pad(tf.eye(length, dtype=tf.int32), [[1, 0], [0, 0]])
        zeros = tf.zeros([length + 1], tf.int32)
        batch = {
            **dict.fromkeys(task.features, zeros),
            "tokens": tokens,
            "length": zeros + length,
        }
        dropout = Dropout(keys=noise.row_keys(0, tf.constant(0), zeros))
        states, unseen = task.predictions(
            architecture, model, batch, DEFAULT_OPTIONS, dropout
        )
    change = tf.reduce_max(tf.abs(states[1:] - states[:1]), axis=2)  # (T, P)
    limit = _TOLERANCE * tf.reduce_max(tf.abs(states))
    # "not <=": a state that is not a number does not pass.
    leaks = np.argwhere(unseen[0].numpy().T & ~(change <= limit).numpy())
    if len(leaks):
        token, prediction = leaks[0]
        raise UserError(
            "A prediction must not depend on what it predicts, nor on what comes "
            f"later. Received: `model.architecture={architecture.name}` with "
            f"`training.task={task.name}`, where token {token} changes prediction "
            f"{prediction}, and {len(leaks) - 1} more pairs are alike. It would learn "
            "to copy, and generate garbage. Use another `training.task`, or mask what "
            "the architecture must not see."
        )
