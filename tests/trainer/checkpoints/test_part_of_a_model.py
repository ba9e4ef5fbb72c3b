"""Runs that train a part of the weights: what is saved, restored and refused."""

import copy
import dataclasses
import shutil

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from configs.errors import DataError
from configs.schema import LoraConfig
from tests.conftest import tiny_config, tiny_model, write_dataset
from tests.trainer.checkpoints.test_run_checkpoints import compile_nothing
from tfrecords.windows import Windows
from trainer.checkpoints import run_checkpoints
from trainer.evaluation.scoring import Scorer
from trainer.exporting import huggingface
from trainer.models import lora
from trainer.models.create import create_model
from trainer.models.gpt2 import weights
from trainer.models.gpt2.architecture import ARCHITECTURE as GPT2
from trainer.run_dir import json_files, metrics
from trainer.runtime.cluster import Cluster
from trainer.runtime.strategy import mirror_cpu
from trainer.tasks import causal_lm
from trainer.tasks.step import TrainingStep
from trainer.training.loop import train


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    compile_nothing(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tokens):
    """(folder with `base` and `run`, dataset, config): LoRA, on 2 replicas."""
    folder = tmp_path_factory.mktemp("whole")
    manifest = write_dataset(
        folder / "data",
        train_tokens=tokens,
        validation_tokens=tokens[:83],
        sequence_length=8,
    )
    dataset = folder / "data", manifest
    config = config_of(write_base(dataset, folder / "base", seed=0))
    with pytest.MonkeyPatch.context() as patch:
        compile_nothing(patch)
        run(dataset, folder / "run", config)
    return folder, dataset, config


@pytest.fixture
def copied(whole, tmp_path):
    """(folder, dataset, config) of a copy of the run; its base is not a copy."""
    shutil.copytree(whole[0] / "run", tmp_path / "run")
    return tmp_path / "run", whole[1], copy.deepcopy(whole[2])


def write_base(dataset, folder, seed):
    folder.mkdir()
    tokenizer = weights.load_tokenizer(str(dataset[0] / "tokenizer"))
    huggingface.save(tiny_model(seed, n_layer=1), tokenizer, folder, tf.float32)
    return folder


def config_of(base="", rank=2, **training):
    """Of 4 steps, with dropout on all paths; each step is saved."""
    config = tiny_config(
        **{
            "num_steps": 4,
            "checkpoint_interval": 1,
            "keep_last": 9,
            "evaluation_interval": 4,
            "dropout": 0.1,
            **training,
        }
    )
    config.model.initial_checkpoint = str(base)
    config.model.lora = (
        LoraConfig(rank, targets="c_attn,c_fc") if rank else LoraConfig()
    )
    config.optimizer.learning_rate = 0.1
    return config


def run(dataset, workdir, config, num_replicas=2):
    cluster = Cluster(mirror_cpu(num_replicas))
    train(config, str(dataset[0]), str(workdir), cluster)


def state(workdir, step=4):
    """(values of a checkpoint, bytes of its file)"""
    path = workdir / "checkpoints" / f"step-{step:08d}" / "state.safetensors"
    return safetensors.numpy.load_file(path), path.read_bytes()


def values(model):
    return {v.name.partition("transformer/")[2]: v.numpy() for v in model.variables}


def validation_loss(dataset, loaded):
    windows = Windows(
        *(str(dataset[0]), dataset[1]), split="validation", context_length=8, stride=8
    )
    step = TrainingStep(loaded.model, loaded.architecture, causal_lm.TASK)
    sums = Scorer(step, mirror_cpu(1), windows, batch_size=2)()
    return causal_lm.figures(sums)["loss"]


def test_adapters_alone_are_saved(whole):
    folder, dataset, _ = whole
    stored, _ = state(folder / "run")
    names = {name for name in stored if name.startswith("model/")}
    assert len(names) == 4
    assert all("/lora_" in name for name in names)
    assert not any("wte" in name for name in stored)
    assert all(np.abs(stored[name]).max() > 0 for name in names)

    # The weights of the base are those that they were, bit for bit.
    loaded = run_checkpoints.load_model(str(folder / "run"))
    before, after = values(weights.load(str(folder / "base"))), values(loaded.model)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    for name in names:
        key = name.partition("transformer/")[2]
        np.testing.assert_array_equal(after[f"{key}:0"], stored[name])

    # What was scored in training is scored again; and by the merged weights.
    logged = metrics.load(str(folder / "run"))[-1]["validation_loss"]
    assert validation_loss(dataset, loaded) == pytest.approx(logged, rel=1e-6)
    loaded = run_checkpoints.LoadedModel(
        loaded.architecture.as_transformers(loaded.model),
        loaded.architecture,
        loaded.record,
    )
    assert validation_loss(dataset, loaded) == pytest.approx(logged, rel=1e-5)
    record = json_files.read(str(folder / "run" / "run.json"))
    assert record["trained_parameter_count"] == 2 * (16 + 48 + 16 + 64)
    assert record["parameter_count"] > 10 * record["trained_parameter_count"]


def test_a_run_with_lora_continues_bit_for_bit(whole, copied):
    workdir, dataset, config = copied
    for step in (3, 4):
        shutil.rmtree(workdir / "checkpoints" / f"step-{step:08d}")
    run(dataset, workdir, config)
    assert state(workdir)[1] == state(whole[0] / "run")[1]


def test_another_base_is_refused(copied, monkeypatch):
    workdir, dataset, config = copied
    load = GPT2.load

    def load_another(checkpoint):
        model = load(checkpoint)
        model.transformer.ln_f.beta.assign_add([1e-7] * 16)
        return model

    another = dataclasses.replace(GPT2, load=load_another)
    monkeypatch.setattr("trainer.models.gpt2.architecture.ARCHITECTURE", another)
    message = r"must be used with the weights .* made from .*base, and adapters of"
    with pytest.raises(DataError, match=message):
        run_checkpoints.load_model(str(workdir))
    with pytest.raises(DataError, match=message):
        run(dataset, workdir, config)


def test_a_random_base_is_made_again(dataset, tmp_path):
    config = config_of(num_steps=1)
    run(dataset, tmp_path / "run", config, num_replicas=1)
    loaded = run_checkpoints.load_model(str(tmp_path / "run")).model
    config.model.lora = LoraConfig()
    plain = values(create_model(config.model, dataset[1], config.training.seed))
    assert len(lora.adapters(loaded)) == 4
    for name, value in plain.items():
        np.testing.assert_array_equal(values(loaded)[name], value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: setattr(c.model.lora, "rank", 3), r"model\.lora\.rank: 2 .*, 3 now"),
        (lambda c: setattr(c.model.lora, "targets", "c_fc"), r"model\.lora\.targets"),
        (
            lambda c: setattr(c.model, "lora", LoraConfig()),
            r"model\.lora\.rank: 2 .* 0",
        ),
    ],
)
def test_another_adapter_is_refused(copied, change, message):
    workdir, dataset, config = copied
    change(config)
    with pytest.raises(DataError, match=message):
        run(dataset, workdir, config, num_replicas=1)


@pytest.mark.slow
def test_a_part_is_trained_saved_with_the_rest_and_continued(dataset, tmp_path):
    base = write_base(dataset, tmp_path / "base", seed=0)
    config = config_of(base, rank=0, trainable="ln_f,mlp")
    run(dataset, tmp_path / "run", config)
    stored, whole = state(tmp_path / "run")
    slots = {name for name in stored if name.startswith("optimizer/") and "/v" in name}
    assert all("ln_f" in name or "mlp" in name for name in slots)
    assert slots
    before, after = (
        values(weights.load(str(base))),
        values(run_checkpoints.load_model(str(tmp_path / "run")).model),
    )
    moved = {n for n, value in before.items() if (value != after[n]).any()}
    assert moved == {n for n in before if "ln_f" in n or "mlp" in n}
    for step in (3, 4):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{step:08d}")
    run(dataset, tmp_path / "run", config)
    assert state(tmp_path / "run")[1] == whole
    config.training.trainable = "mlp"
    with pytest.raises(
        DataError, match=r"training\.trainable: 'ln_f,mlp' in the workd"
    ):
        run(dataset, tmp_path / "run", config)
