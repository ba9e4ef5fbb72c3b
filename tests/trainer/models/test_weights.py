"""Models from a shape and from checkpoints, and data that does not fit them."""

import dataclasses
import json
import os
import pathlib

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
from transformers import GPT2Config

from configs.errors import UserError
from configs.schema import ModelConfig
from tests import programs
from tests.conftest import VOCABULARY_SIZE, assert_refused, shared, tiny_model
from tfrecords import checksums, fingerprints
from trainer.models.create import check_fits, create_model
from trainer.models.gpt2 import weights


def pytorch_folder(folder: pathlib.Path, gpt2, vocabulary: str = "") -> str:
    """Writes what PyTorch's `save_pretrained` writes, by its names, without torch."""
    folder.mkdir()
    gpt2.config.save_pretrained(folder)
    tensors = {}
    for variable in gpt2.trainable_variables:
        name = variable.name.split("/", 1)[1].removesuffix(":0")
        name = name.replace("h_._", "h.").replace("/", ".")
        for theirs, ours in (
            ("wte.weight", "wte.embeddings"),
            ("wpe.weight", "wpe.embeddings"),
            (".weight", ".gamma"),
            (".bias", ".beta"),
        ):
            name = name.removesuffix(ours) + theirs if name.endswith(ours) else name
        value = variable.numpy()
        tensors[name] = value[0] if name.endswith("bias") and value.ndim == 2 else value
    safetensors.numpy.save_file(
        tensors, folder / "model.safetensors", metadata={"format": "pt"}
    )
    if vocabulary:
        for name in ("vocab.json", "merges.txt"):
            (folder / name).write_text((pathlib.Path(vocabulary) / name).read_text())
    return str(folder)


def test_initial_weights_are_gpt2s_and_depend_on_the_seed_alone():
    first, again, other = (
        weights.build(GPT2Config(vocab_size=999, n_embd=64, n_layer=8, n_head=4))
        for _ in range(3)
    )
    weights.initialize(first, 3)
    weights.initialize(again, 3)
    weights.initialize(other, 4)
    for a, b in zip(first.trainable_variables, again.trainable_variables, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.std(first.transformer.wte.embeddings) == pytest.approx(0.02, rel=0.02)
    residual = first.transformer.h[0].mlp.c_proj.weight
    assert np.std(residual) == pytest.approx(0.02 / 4, rel=0.03)  # sqrt(2 x 8) = 4
    changed = other.transformer.h[0].mlp.c_proj.weight
    assert (residual.numpy() != changed.numpy()).all()
    assert not np.any(first.transformer.h[0].attn.c_attn.bias)


def test_safetensors_of_pytorch_load(tmp_path):
    gpt2 = tiny_model()
    loaded = weights.load(pytorch_folder(tmp_path / "hf", gpt2))
    tokens = tf.constant([[1, 5, 9, 2]])
    np.testing.assert_allclose(loaded(tokens).logits, gpt2(tokens).logits, atol=1e-5)


@pytest.mark.parametrize("names", [[], ["vocab.txt"], ["vocab.json"], ["merges.txt"]])
def test_a_missing_tokenizer_is_one_message(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="must hold a tokenizer") as caught:
        weights.load_tokenizer(str(tmp_path))
    assert "NoneType" not in str(caught.value)
    reason = "Missing [UNK]" if "vocab.txt" in names else "it has none of them"
    assert reason in str(caught.value)


def test_a_folder_without_weights_is_one_message(tmp_path):
    with pytest.raises(UserError, match="must be a Hugging Face GPT-2 folder"):
        weights.load(str(tmp_path))


def test_data_beyond_the_model_is_refused(dataset):
    written = dataset[1]
    gpt2 = tiny_model()
    check_fits(gpt2, written)
    wide = dataclasses.replace(written, vocabulary_size=VOCABULARY_SIZE + 1)
    with pytest.raises(UserError, match="98 > 97"):
        check_fits(gpt2, wide)
    long = dataclasses.replace(written, sequence_length=17)
    with pytest.raises(UserError, match="17 > 16"):
        check_fits(gpt2, long)


def test_data_of_another_tokenizer_is_refused(dataset, tmp_path):
    vocabulary = os.path.dirname(shared("gpt2-vocabulary/vocab.json"))
    folder = pytorch_folder(tmp_path / "hf", tiny_model(), vocabulary)
    config = ModelConfig(initial_checkpoint=folder)
    same = fingerprints.of_tokenizer(vocabulary)
    matching = dataclasses.replace(dataset[1], tokenizer_fingerprint=same)
    create_model(config, matching, seed=0)
    with pytest.raises(UserError, match="tokenized with the model's tokenizer"):
        create_model(config, dataset[1], seed=0)


def test_a_checkpoint_without_tokenizer_is_taken_with_a_warning(
    dataset, tmp_path, caplog
):
    folder = pytorch_folder(tmp_path / "hf", tiny_model())
    create_model(ModelConfig(initial_checkpoint=folder), dataset[1], seed=0)
    assert "has no tokenizer" in caplog.text


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        ({}, ["--config.training.global_batch_size=6"], "Use 4 or 8"),
        ({"vocabulary_size": 60_000}, ["CHECKPOINT"], "60000 > 97"),
        ({}, ["--tpu=grpc://10.0.0.1:8470"], "must be gs://"),
        ({}, ["--tpu=local"], "must name a TPU that can be reached"),
    ],
)
def test_bad_input_to_the_trainer_is_one_message(
    dataset, tmp_path, damage, arguments, message
):
    folder, _ = dataset
    values = checksums.unsealed(json.loads((folder / "manifest.json").read_text()))
    (folder / "manifest.json").write_text(json.dumps({**values, **damage}))
    if arguments == ["CHECKPOINT"]:
        checkpoint = pytorch_folder(tmp_path / "hf", tiny_model())
        arguments = [f"--config.model.initial_checkpoint={checkpoint}"]
    if "--tpu" not in arguments[0]:
        arguments = [*arguments, "--num_virtual_devices=2"]
    found = programs.run(
        "trainer.train",
        "--config=configs/quickstart.py",
        "--config.tracking.sample_interval=0",
        "--config.training.microbatch_size=2",
        f"--data_dir={folder}",
        f"--workdir={tmp_path / 'run'}",
        *arguments,
    )
    assert_refused(found, message)
