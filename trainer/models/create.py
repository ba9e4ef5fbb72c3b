"""Builds the model of a run, and checks that it fits the dataset."""

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import tf_keras
from absl import logging

from configs.errors import UserError
from configs.schema import ModelConfig
from tfrecords import checksums, encoding, fingerprints
from tfrecords.manifest import Manifest
from tfrecords.storage import files
from trainer.models import classifier, lora, registry, vocabulary
from trainer.models.architecture import Architecture

_ADD_ROWS = (
    "Tokens were added to the tokenizer and not to the model, or the tokenizer's files "
    "lack a token that the library then adds, such as <|endoftext|>. Give the model "
    "rows: `model.resize_token_embeddings(len(tokenizer))` in transformers, or train "
    "it here with this tokenizer as `data.tokenizer`, which adds them."
)


def create_model(
    config: ModelConfig,
    manifest: Manifest,
    seed: int,
    tokenizer: str = "",
    labels: Sequence[str] = (),
) -> tf_keras.Model:
    """Builds the model, under the strategy's scope, for a dataset.

    Args:
      config: a shape, or `initial_checkpoint`, which brings shape and weights.
      manifest: vocabulary, tokenizer and sequence length of the data.
      seed: of random weights.
      tokenizer: the dataset's folder of it; `model.vocabulary=transplant` reads it.
      labels: of a classifier; empty: the model is a language model.

    Raises:
      UserError: model and data do not fit together, LoRA does not fit the model, or the
        checkpoint is of a classifier and the model is not.
    """
    architecture = registry.get(config.architecture)
    if config.initial_checkpoint:
        checksums.verify_list(config.initial_checkpoint)
        model = architecture.load(config.initial_checkpoint)
        if config.vocabulary == "transplant":
            tokenizers = (config.initial_checkpoint, tokenizer)
            model = vocabulary.transplant(architecture, model, tokenizers)
        else:
            model = _add_rows(architecture, model, config.initial_checkpoint, manifest)
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
    if labels:
        model = classifier.add_head(architecture, model, labels, seed)
        # Behind the text; the task passes over it.
        model.config.eos_token_id = manifest.end_of_text_id
        model.config.pad_token_id = manifest.pad_id
    else:
        classifier.check_is_none(model, config.initial_checkpoint)
    lora.attach(model, config.lora, seed)
    return model


def _add_rows(
    architecture: Architecture,
    model: tf_keras.Model,
    checkpoint: str,
    manifest: Manifest,
) -> tf_keras.Model:
    """Adds rows for tokens of the checkpoint's tokenizer that its model lacks.

    Those that preprocessing added, or that the tokenizer has without a row.
    """
    is_same = check_tokenizer(architecture, checkpoint, manifest)
    missing = manifest.vocabulary_size - model.config.vocab_size
    if missing <= 0 or not (is_same or manifest.added_tokens):
        return model
    logging.warning(
        "the model gets %d rows for tokens that %s lacks", missing, checkpoint
    )
    rows = [[index] for index in range(model.config.vocab_size)]
    return architecture.resize_vocabulary(model, rows + [[]] * missing)


def model_configuration(config: ModelConfig, manifest: Manifest) -> Any:
    """Returns the configuration of the model that `create_model` builds.

    Raises:
      UserError: the checkpoint's configuration cannot be read.
    """
    architecture = registry.get(config.architecture)
    configuration = architecture.configuration_of(config, manifest.vocabulary_size)
    if config.initial_checkpoint:
        size = configuration.vocab_size if config.vocabulary == "resize" else 0
        configuration.vocab_size = max(size, manifest.vocabulary_size)
    return configuration


def check_vocabulary(
    model: tf_keras.Model, manifest: Manifest, *, same_tokenizer: bool = False
) -> None:
    """Raises UserError where the data has ids that the model lacks.

    Args:
      model: whose table has a row for each id.
      manifest: of the data.
      same_tokenizer: whether the data is of the model's tokenizer already.
    """
    if manifest.vocabulary_size > model.config.vocab_size:
        raise UserError(
            "The dataset's vocabulary must not be larger than the model's. Received: "
            f"{manifest.vocabulary_size} > {model.config.vocab_size}. "
            + (
                _ADD_ROWS
                if same_tokenizer
                else "Preprocess with the model's tokenizer."
            )
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


def load_tokenizer(
    architecture: Architecture, source: str, model: tf_keras.Model
) -> Any:
    """Loads the tokenizer of a model, all of whose ids are rows of the model's table.

    Args:
      architecture: loads the tokenizer.
      source: folder, Hugging Face name or gs://….
      model: of the tokenizer.

    Raises:
      UserError: nothing loads, or an id has no row.
    """
    tokenizer = architecture.load_tokenizer(source)
    size = model.config.vocab_size
    outside = {t: i for t, i in tokenizer.get_vocab().items() if i >= size}
    if outside:
        token, token_id = min(outside.items(), key=lambda item: item[1])
        raise UserError(
            f"Each token of {source} must have a row of the model's table, which has "
            f"{size}. Received: {len(outside)} tokens beyond it, such as {token!r} "
            f"with id {token_id}. {_ADD_ROWS}"
        )
    return tokenizer


def check_tokenizer(
    architecture: Architecture, source: str, manifest: Manifest
) -> bool:
    """Compares a checkpoint's tokenizer with the dataset's.

    Returns False where the checkpoint has none.

    Args:
      architecture: loads the tokenizer.
      source: folder, Hugging Face name or gs://….
      manifest: of the dataset.

    Raises:
      UserError: they differ.
    """
    names: set[str] | None = None  # the files of a hub's name are not known
    if files.is_remote(source) or os.path.isdir(source):
        names = set(files.sizes_and_versions(source))
    if names is not None and not names & {*encoding.TOKENIZER_FILES}:
        logging.warning(
            "%s has no tokenizer: only the size of its vocabulary is compared.", source
        )
        return False
    tokenizer = architecture.load_tokenizer(source)
    tokenizer.add_tokens(list(manifest.added_tokens), special_tokens=True)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        is_same = fingerprints.is_same(manifest.tokenizer_fingerprint, folder)
        fingerprint = fingerprints.of_tokenizer(folder)
    if not is_same:
        raise UserError(
            "The dataset must be tokenized with the model's tokenizer. Received: "
            f"tokenizer {manifest.tokenizer_fingerprint[:12]} in the dataset, "
            f"{str(fingerprint)[:12]} in {source}. Preprocess with "
            f"`--config.data.tokenizer={source}`, or give the model the rows of the "
            "dataset's tokenizer: `--config.model.vocabulary=transplant`."
        )
    return True
