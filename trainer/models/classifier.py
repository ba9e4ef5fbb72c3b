"""Gives a network a head, whose products with a text's last state are the logits.

A classifier's configuration names its labels, as transformers' do; its head is one more
variable of the model. Steps, checkpoints, plans and exports know nothing else of it.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from configs.errors import UserError
from trainer.models.architecture import Architecture
from trainer.models.variables import name_of

# By which transformers knows such a model.
ARCHITECTURE = "GPT2ForSequenceClassification"


def labels_of(configuration: Any) -> tuple[str, ...]:
    """Returns a classifier's labels, in the order of its logits; () of other models."""
    if ARCHITECTURE not in (configuration.architectures or ()):
        return ()
    return tuple(configuration.id2label[i] for i in range(configuration.num_labels))


def configure(
    architecture: Architecture, configuration: Any, labels: Sequence[str]
) -> Any:
    """Returns the configuration of the same network with a head for these labels.

    Raises:
      UserError: the architecture knows no head.
    """
    if not architecture.classifies:
        raise UserError(
            "`training.task=classification` needs an architecture with a head for "
            f"labels, such as gpt2. Received: `model.architecture={architecture.name}`."
        )
    values = {
        **configuration.to_dict(),
        "architectures": [ARCHITECTURE],
        "problem_type": "single_label_classification",
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    return architecture.configuration_class.from_dict(values)


def add_head(
    architecture: Architecture, model: tf_keras.Model, labels: Sequence[str], seed: int
) -> tf_keras.Model:
    """Returns the model with a head of random weights, unless it has these labels.

    Raises:
      UserError: the architecture knows no head.
    """
    if labels_of(model.config) == tuple(labels):
        return model
    extended = architecture.build(configure(architecture, model.config, labels))
    values = {name_of(variable): variable for variable in model.variables}
    (head,) = head_of(extended)
    for variable in extended.variables:
        if variable is not head:
            variable.assign(values[name_of(variable)])
    stddev = model.config.initializer_range
    head.assign(tf.random.stateless_normal(head.shape, [seed, -1], stddev=stddev))
    return extended


def check_is_none(model: tf_keras.Model, checkpoint: str) -> None:
    """Raises UserError where a language model would start from a classifier."""
    if labels_of(model.config):
        raise UserError(
            "`model.initial_checkpoint` must be a language model, unless "
            f"`training.task` is classification. Received: {checkpoint}, a classifier "
            f"of {', '.join(labels_of(model.config))}. Name the language model that it "
            "was made from."
        )


def head_of(model: tf_keras.Model) -> list[tf.Variable]:
    """Returns the one variable of a classifier's head, [C, labels]; none of others."""
    return [v for v in model.variables if name_of(v) == "score.weight"]
