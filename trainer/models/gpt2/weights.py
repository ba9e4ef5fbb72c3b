"""Builds, initializes and loads transformers' GPT-2, with Hugging Face's names.

It is a TFGPT2LMHeadModel, or TFGPT2ForSequenceClassification where its configuration
names labels.
"""

from collections.abc import Sequence

import tensorflow as tf
import tf_keras
from transformers import (
    GPT2Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    TFGPT2ForSequenceClassification,
    TFGPT2LMHeadModel,
)
from transformers.modeling_tf_pytorch_utils import (
    convert_tf_weight_name_to_pt_weight_name,
)

from configs.errors import UserError, one_message
from tfrecords import encoding
from trainer.models import classifier, lora, pretrained_weights, variables
from trainer.models.gpt2 import configuration

GPT2 = TFGPT2LMHeadModel | TFGPT2ForSequenceClassification


def load(checkpoint: str) -> GPT2:
    """Loads a Hugging Face folder or name; weights of TensorFlow or PyTorch.

    Raises:
      UserError: the checkpoint does not exist, or is not that of a whole GPT-2.
    """
    model = build(configuration.load_configuration(checkpoint))
    variables = pytorch_weights(model)
    pretrained_weights.assign(
        variables,
        checkpoint,
        kind="GPT-2",
        tied=("lm_head.weight", "transformer.wte.weight"),
        transposed=("score.weight",),
    )
    return model


def pytorch_weights(model: GPT2) -> dict[str, tf.Variable]:
    """Returns the variables by PyTorch's names.

    A bias is [1, n] where PyTorch's is [n]. The matrices have PyTorch's layout, except
    that of a head, which is transposed.
    """
    return {
        convert_tf_weight_name_to_pt_weight_name(
            variable.name, tf_weight_shape=variable.shape
        )[0]: variable
        for variable in lora.base(model)
    }


def build(config: PretrainedConfig) -> GPT2:
    """Builds a model with all variables; their values are arbitrary."""
    is_classifier = classifier.labels_of(config)
    model = (TFGPT2ForSequenceClassification if is_classifier else TFGPT2LMHeadModel)(
        config
    )
    model.build_in_name_scope()
    return model


def resize_vocabulary(model: GPT2, rows: Sequence[Sequence[int]]) -> GPT2:
    """Returns a model of another vocabulary; see `Architecture`.

    A token with the mean row starts as likely as the average token, and the loss does
    not jump.
    """
    values = model.config.to_dict()
    extended = build(GPT2Config.from_dict({**values, "vocab_size": len(rows)}))
    copy_with_new_rows(model, extended, extended.transformer.wte.embeddings, rows)
    return extended


def copy_with_new_rows(
    old: tf_keras.Model,
    new: tf_keras.Model,
    table: tf.Variable,
    rows: Sequence[Sequence[int]],
) -> None:
    """Copies all weights; the rows of `table` are means of old rows.

    Args:
      old: has the weights.
      new: is assigned to, and has the same variables.
      table: [V, …] of `new`.
      rows: V lists of old rows; an empty one stands for all.
    """
    for mine, theirs in zip(new.variables, old.variables, strict=True):
        value = tf.convert_to_tensor(theirs)
        if mine is table:
            value = variables.means_of_rows(value, rows)
        mine.assign(value)


def as_transformers(model: GPT2, into: GPT2 | None = None) -> GPT2:
    """Returns the model itself, or `into` with its weights, adapters merged."""
    if into is None and not lora.adapters(model):
        return model
    into = into or build(model.config)
    for mine, theirs in zip(into.variables, lora.merged(model), strict=True):
        mine.assign(theirs)
    return into


def initialize(model: tf_keras.Model, seed: int) -> None:
    """Assigns random weights that depend on `seed` alone, not on the strategy.

    Source: Radford et al. (2019), section 2.3: N(0, 0.02), and projections into the
    residual stream scaled by 1/sqrt(number of residual layers); biases are 0.
    """
    residual_scale = (2 * model.config.n_layer) ** -0.5
    for index, variable in enumerate(model.trainable_variables):
        if variable.name.endswith(("gamma:0", "beta:0", "bias:0")):
            continue  # Keras has set them to 1, 0 and 0
        stddev = model.config.initializer_range
        if "c_proj" in variable.name:
            stddev *= residual_scale
        variable.assign(
            tf.random.stateless_normal(variable.shape, [seed, index], stddev=stddev)
        )


def load_tokenizer(source: str) -> PreTrainedTokenizerFast:
    """Loads the tokenizer of a checkpoint, of whatever family.

    Args:
      source: a folder, a Hugging Face name, or gs://….

    Raises:
      UserError: there is no tokenizer that loads.
    """
    with one_message(
        UserError,
        f"{source} must hold a tokenizer: tokenizer.json, vocab.json and merges.txt, "
        "vocab.txt or spiece.model. Copy the tokenizer that the model was trained "
        "with. Loading failed:",
    ):
        return encoding.load_tokenizer(source)
