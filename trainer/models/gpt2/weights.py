"""Config -> TFGPT2LMHeadModel. Weights, names and checkpoints are Hugging Face's."""

import os
import tempfile

import tensorflow as tf
from transformers import (
    GPT2Config,
    GPT2TokenizerFast,
    PretrainedConfig,
    TFGPT2LMHeadModel,
)
from transformers.modeling_tf_pytorch_utils import (
    convert_tf_weight_name_to_pt_weight_name,
)

from configs.errors import TryAgainError, UserError
from tfrecords.storage import files
from trainer.models.gpt2 import configuration, pretrained_weights


def load(checkpoint: str) -> TFGPT2LMHeadModel:
    """Loads a Hugging Face folder or name; weights of TensorFlow or PyTorch.

    Raises:
      UserError: there is no such checkpoint, or it is not wholly a GPT-2's.
    """
    model = from_shape(configuration.load_configuration(checkpoint))
    pretrained_weights.assign(pytorch_weights(model), checkpoint)
    return model


def pytorch_weights(model: TFGPT2LMHeadModel) -> dict[str, tf.Variable]:
    """Returns the weights by PyTorch's names; a bias is [1, n], where PyTorch has [n].

    The matrices are as PyTorch's GPT-2 has them: none is to be transposed.
    """
    return {
        convert_tf_weight_name_to_pt_weight_name(
            variable.name, tf_weight_shape=variable.shape
        )[0]: variable
        for variable in model.variables
    }


def from_shape(config: PretrainedConfig) -> TFGPT2LMHeadModel:
    """Builds a model with its variables; their values are arbitrary."""
    model = TFGPT2LMHeadModel(config)
    model.build_in_name_scope()
    return model


def resize_vocabulary(model: TFGPT2LMHeadModel, size: int) -> TFGPT2LMHeadModel:
    """Returns the model with rows for new tokens, each the mean of all others.

    So a new token begins as likely as the average one, and the loss does not jump.
    """
    values = model.config.to_dict()
    extended = from_shape(GPT2Config.from_dict({**values, "vocab_size": size}))
    for new, old in zip(extended.variables, model.variables, strict=True):
        value = tf.convert_to_tensor(old)
        if new is extended.transformer.wte.embeddings:
            mean = tf.reduce_mean(value, axis=0, keepdims=True)
            value = tf.concat([value, tf.repeat(mean, size - len(value), axis=0)], 0)
        new.assign(value)
    return extended


def initialize(model: TFGPT2LMHeadModel, seed: int) -> None:
    """Draws all weights from `seed`, the same under every strategy.

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


def load_tokenizer(source: str) -> GPT2TokenizerFast:
    """Loads the tokenizer of a checkpoint, a Hugging Face folder or name, or gs://…."""
    try:
        if not files.is_remote(source):
            return GPT2TokenizerFast.from_pretrained(source)
        # transformers reads no bucket.
        with tempfile.TemporaryDirectory() as folder:
            for name in files.sizes_and_versions(source):
                if name.endswith((".json", ".txt")):
                    path = files.join(source, name)
                    files.download(path, os.path.join(folder, name))
            return GPT2TokenizerFast.from_pretrained(folder)
    except (UserError, TryAgainError):
        raise
    except Exception as error:  # `tokenizers` raises nothing more special
        said = [*str(error).strip().splitlines(), type(error).__name__][0]
        raise UserError(
            f"{source} must hold a tokenizer: tokenizer.json, or vocab.json and "
            f"merges.txt. Copy that of the model's training there. Loading said: {said}"
        ) from error
