"""Config -> TFGPT2LMHeadModel. Weights, names and checkpoints are Hugging Face's."""

import os
import tempfile

import safetensors
import safetensors.tensorflow
import tensorflow as tf
from absl import logging
from transformers import (
    GPT2Config,
    GPT2TokenizerFast,
    PretrainedConfig,
    TFGPT2LMHeadModel,
)
from transformers.modeling_tf_pytorch_utils import (
    convert_tf_weight_name_to_pt_weight_name,
    load_pytorch_state_dict_in_tf2_model,
)
from transformers.utils import cached_file

from configs.errors import TryAgainError, UserError
from configs.schema import ModelConfig
from tfrecords import fingerprints
from tfrecords.manifest import Manifest
from tfrecords.storage import files


def create(config: ModelConfig, manifest: Manifest, seed: int) -> TFGPT2LMHeadModel:
    """Builds the model, under the strategy's scope, for a dataset.

    Args:
      config: a shape, or `initial_checkpoint`, which brings shape and weights.
      manifest: vocabulary, tokenizer and sequence length of the data.
      seed: of random weights.

    Raises:
      UserError: model and data do not fit together.
    """
    if config.initial_checkpoint:
        model = load(config.initial_checkpoint)
        check_tokenizer(config.initial_checkpoint, manifest)
        if manifest.added_tokens and manifest.vocabulary_size > model.config.vocab_size:
            model = _with_new_tokens(model, manifest.vocabulary_size)
    else:
        model = from_shape(
            shape_of(
                config,
                manifest.vocabulary_size,
                bos_token_id=manifest.end_of_text_id,
                eos_token_id=manifest.end_of_text_id,
            )
        )
        initialize(model, seed)
    check_fits(model, manifest)
    return model


def shape(config: ModelConfig, manifest: Manifest) -> GPT2Config:
    """Returns the shape of the model that `create` builds, without building it.

    Raises:
      UserError: the checkpoint's config.json cannot be read.
    """
    if not config.initial_checkpoint:
        return shape_of(config, manifest.vocabulary_size)
    try:
        found = GPT2Config.from_pretrained(config.initial_checkpoint)
    except (OSError, ValueError) as error:
        raise UserError(
            "`model.initial_checkpoint` must be a Hugging Face folder or name with "
            f"config.json. Received: {config.initial_checkpoint!r}."
        ) from error
    if manifest.added_tokens:
        found.vocab_size = max(found.vocab_size, manifest.vocabulary_size)
    return found


def shape_of(config: ModelConfig, vocabulary_size: int, **ids: int) -> GPT2Config:
    """Returns the shape that a config's own fields describe."""
    return GPT2Config(
        vocab_size=vocabulary_size,
        n_positions=config.n_positions,
        n_embd=config.n_embd,
        n_layer=config.n_layer,
        n_head=config.n_head,
        **ids,
    )


def load(checkpoint: str) -> TFGPT2LMHeadModel:
    """Loads a Hugging Face folder or name; weights of TensorFlow or PyTorch.

    Raises:
      UserError: there is no such checkpoint, or it is not a GPT-2's.
    """
    try:
        path = str(cached_file(checkpoint, "model.safetensors"))
        with safetensors.safe_open(path, framework="numpy") as file:
            from_pytorch = (file.metadata() or {}).get("format") == "pt"
        if from_pytorch:
            model = from_shape(GPT2Config.from_pretrained(checkpoint))
            weights = safetensors.tensorflow.load_file(path)
        else:
            model = TFGPT2LMHeadModel.from_pretrained(checkpoint, use_safetensors=True)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(
            "The checkpoint must be a Hugging Face GPT-2 folder or name, with "
            f"config.json and model.safetensors. Received: {checkpoint!r}. Loading "
            f"said: {str(error).strip().splitlines()[0]}"
        ) from error
    _check_variant(model, checkpoint)
    if from_pytorch:
        _assign_pytorch(model, weights, checkpoint)
    return model


def _check_variant(model: TFGPT2LMHeadModel, checkpoint: str) -> None:
    """Raises UserError where TensorFlow's GPT-2 would ignore what the config asks."""
    usual = {
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": True,
        "add_cross_attention": False,
    }
    for name, value in usual.items():
        found = getattr(model.config, name, value)
        if found != value:
            raise UserError(
                f"The config.json of {checkpoint} must have {name}={value}: GPT-2 as "
                f"published. Received: {found}."
            )


def _assign_pytorch(
    model: TFGPT2LMHeadModel, weights: dict[str, tf.Tensor], checkpoint: str
) -> None:
    """Assigns weights with PyTorch's names.

    `from_pretrained` would do it, but iterates over a file that cannot be iterated:
    https://github.com/huggingface/transformers/issues/40028.
    """
    try:
        _, found = load_pytorch_state_dict_in_tf2_model(
            model,
            weights,
            tf_inputs=False,
            allow_missing_keys=True,
            output_loading_info=True,
            skip_logger_warnings=True,
        )
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        raise UserError(
            f"The weights of {checkpoint} do not have the shapes of its config.json: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    if found["missing_keys"]:
        raise UserError(
            f"The weights of {checkpoint} must be a GPT-2's. Missing: "
            f"{', '.join(sorted(found['missing_keys']))}."
        )


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


def _with_new_tokens(model: TFGPT2LMHeadModel, size: int) -> TFGPT2LMHeadModel:
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


def check_vocabulary(model: TFGPT2LMHeadModel, manifest: Manifest) -> None:
    """Raises UserError where the data has ids that the model lacks."""
    if manifest.vocabulary_size > model.config.vocab_size:
        raise UserError(
            "The dataset's vocabulary must not be larger than the model's. Received: "
            f"{manifest.vocabulary_size} > {model.config.vocab_size}. Preprocess "
            "with the model's tokenizer."
        )


def check_fits(model: TFGPT2LMHeadModel, manifest: Manifest) -> None:
    """Raises UserError where the data has ids or positions that the model lacks."""
    check_vocabulary(model, manifest)
    if manifest.sequence_length > model.config.n_positions:
        raise UserError(
            "The dataset's sequence length must not exceed the model's positions. "
            f"Received: {manifest.sequence_length} > {model.config.n_positions}. "
            "Preprocess with a smaller `data.sequence_length`."
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


def check_tokenizer(source: str, manifest: Manifest) -> None:
    """Raises UserError where a checkpoint's tokenizer is not the dataset's."""
    names: set[str] | None = None  # of a name of the hub, which loading tells
    if files.is_remote(source) or os.path.isdir(source):
        names = set(files.sizes_and_versions(source))
    if names is not None and not names & {"tokenizer.json", "vocab.json"}:
        logging.warning(
            "%s has no tokenizer: only the size of its vocabulary is compared.", source
        )
        return
    tokenizer = load_tokenizer(source)
    tokenizer.add_tokens(list(manifest.added_tokens), special_tokens=True)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        found = fingerprints.of_tokenizer(folder)
    if found != manifest.tokenizer_fingerprint:
        raise UserError(
            "The dataset must be tokenized with the model's tokenizer. Received: "
            f"tokenizer {manifest.tokenizer_fingerprint[:12]} in the dataset, "
            f"{str(found)[:12]} in {source}. Preprocess with "
            f"`--config.data.tokenizer={source}`."
        )
