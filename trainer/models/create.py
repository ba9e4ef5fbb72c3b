"""Builds the model of a run, and checks that it fits the dataset."""

import os
import tempfile
from typing import Any

import tf_keras
from absl import logging

from configs.errors import UserError
from configs.schema import ModelConfig
from tfrecords import checksums, fingerprints
from tfrecords.manifest import Manifest
from tfrecords.storage import files
from trainer.models import registry
from trainer.models.architecture import Architecture


def create_model(config: ModelConfig, manifest: Manifest, seed: int) -> tf_keras.Model:
    """Builds the model, under the strategy's scope, for a dataset.

    Args:
      config: a shape, or `initial_checkpoint`, which brings shape and weights.
      manifest: vocabulary, tokenizer and sequence length of the data.
      seed: of random weights.

    Raises:
      UserError: model and data do not fit together.
    """
    architecture = registry.get(config.architecture)
    if config.initial_checkpoint:
        checksums.verify_list(config.initial_checkpoint)
        model = architecture.load(config.initial_checkpoint)
        check_tokenizer(architecture, config.initial_checkpoint, manifest)
        if manifest.added_tokens and manifest.vocabulary_size > model.config.vocab_size:
            model = architecture.resize_vocabulary(model, manifest.vocabulary_size)
    else:
        configuration = architecture.configure(
            config,
            manifest.vocabulary_size,
            bos_token_id=manifest.end_of_text_id,
            eos_token_id=manifest.end_of_text_id,
        )
        model = architecture.build(configuration)
        architecture.initialize(model, seed)
    check_fits(model, manifest)
    return model


def model_configuration(config: ModelConfig, manifest: Manifest) -> Any:
    """Returns the configuration of the model that `create_model` builds.

    Raises:
      UserError: the checkpoint's configuration cannot be read.
    """
    architecture = registry.get(config.architecture)
    configuration = architecture.configuration_of(config, manifest.vocabulary_size)
    if config.initial_checkpoint and manifest.added_tokens:
        size = max(configuration.vocab_size, manifest.vocabulary_size)
        configuration.vocab_size = size
    return configuration


def check_vocabulary(model: tf_keras.Model, manifest: Manifest) -> None:
    """Raises UserError where the data has ids that the model lacks."""
    if manifest.vocabulary_size > model.config.vocab_size:
        raise UserError(
            "The dataset's vocabulary must not be larger than the model's. Received: "
            f"{manifest.vocabulary_size} > {model.config.vocab_size}. Preprocess "
            "with the model's tokenizer."
        )


def check_fits(model: tf_keras.Model, manifest: Manifest) -> None:
    """Raises UserError where the data has ids or positions that the model lacks."""
    check_vocabulary(model, manifest)
    if manifest.sequence_length > model.config.n_positions:
        raise UserError(
            "The dataset's sequence length must not exceed the model's positions. "
            f"Received: {manifest.sequence_length} > {model.config.n_positions}. "
            "Preprocess with a smaller `data.sequence_length`."
        )


def check_tokenizer(
    architecture: Architecture, source: str, manifest: Manifest
) -> None:
    """Raises UserError where a checkpoint's tokenizer is not the dataset's.

    Args:
      architecture: loads the tokenizer.
      source: folder, Hugging Face name or gs://….
      manifest: of the dataset.
    """
    names: set[str] | None = None  # the files of a hub's name are not known
    if files.is_remote(source) or os.path.isdir(source):
        names = set(files.sizes_and_versions(source))
    if names is not None and not names & {"tokenizer.json", "vocab.json"}:
        logging.warning(
            "%s has no tokenizer: only the size of its vocabulary is compared.", source
        )
        return
    tokenizer = architecture.load_tokenizer(source)
    tokenizer.add_tokens(list(manifest.added_tokens), special_tokens=True)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        fingerprint = fingerprints.of_tokenizer(folder)
    if fingerprint != manifest.tokenizer_fingerprint:
        raise UserError(
            "The dataset must be tokenized with the model's tokenizer. Received: "
            f"tokenizer {manifest.tokenizer_fingerprint[:12]} in the dataset, "
            f"{str(fingerprint)[:12]} in {source}. Preprocess with "
            f"`--config.data.tokenizer={source}`."
        )
