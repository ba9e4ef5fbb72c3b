"""Advice: the published recipe for its corpus, scaled and split for others."""

import dataclasses
import json

import pytest

from configs import schema, tpu
from configs.validation import validate
from tests import programs
from tests.conftest import ROOT, assert_refused, write_dataset
from tfrecords import manifest as manifests
from trainer.planning import advice, planner
from trainer.runtime import strategy


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, tokens) -> manifests.Manifest:
    return write_dataset(
        tmp_path_factory.mktemp("data") / "data",
        train_tokens=tokens,
        validation_tokens=tokens,
        sequence_length=8,
    )


def of(manifest, num_tokens, *, vocabulary_size=50257, added=(), length=1024):
    train = dataclasses.replace(manifest.splits["train"], tokens=num_tokens)
    return dataclasses.replace(
        manifest,
        sequence_length=length,
        vocabulary_size=vocabulary_size,
        added_tokens=added,
        splits={**manifest.splits, "train": train},
    )


def test_wikitext_2_gets_the_recipe_that_was_measured_on_it(manifest):
    config, lines = advice.advise(of(manifest, 2_310_000), 8)
    rule, training = config.optimizer, config.training
    assert (rule.name, rule.learning_rate) == ("adafactor", 5e-5)
    assert (training.global_batch_size, training.microbatch_size) == (8, 1)
    assert (training.num_epochs, config.model.lora.rank) == (1, 0)
    assert config.model.initial_checkpoint == "gpt2-large"
    assert all(line.reason and line.source for line in lines)
    assert {line.setting for line in lines} >= {
        *("model.initial_checkpoint", "training.num_epochs", "model.lora.rank"),
        *("training.dropout", "training.global_batch_size", "optimizer.learning_rate"),
    }


def test_more_text_gets_a_larger_batch_at_the_same_ratio(manifest):
    config, _ = advice.advise(of(manifest, 100_000_000, length=512), 8)
    assert config.training.global_batch_size == 128  # 64 x 1,024 tokens
    assert config.training.microbatch_size == 16
    assert config.optimizer.learning_rate == pytest.approx(5e-5 * 8)
    assert config.training.num_epochs == 1


def test_little_text_gets_lora_and_several_epochs(manifest):
    config, _ = advice.advise(of(manifest, 90_000), 8)
    assert (config.model.initial_checkpoint, config.model.lora.rank) == ("gpt2", 4)
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("adamw", 2e-4)
    assert config.training.num_epochs == 10
    assert config.training.early_stopping_patience == 3
    # Tokens that were added to GPT-2's tokenizer do not make it another.
    added = of(manifest, 90_000, vocabulary_size=50258, added=("<|joke|>",))
    assert advice.advise(added, 8)[0].model.initial_checkpoint == "gpt2"


@pytest.mark.parametrize(
    ("num_tokens", "layers", "epochs"),
    [(1_000_000, 2, 4), (30_000_000, 4, 4), (120_000_000, 6, 4), (10**10, 12, 1)],
)
def test_another_tokenizer_is_trained_from_scratch(
    manifest, num_tokens, layers, epochs
):
    config, _ = advice.advise(of(manifest, num_tokens, vocabulary_size=8192), 8)
    assert (config.model.initial_checkpoint, config.model.n_layer) == ("", layers)
    assert config.training.num_epochs == epochs


def test_a_very_large_corpus_is_trained_from_scratch(manifest):
    config, _ = advice.advise(of(manifest, 9 * 10**9), 128)
    assert (config.model.initial_checkpoint, config.model.n_layer) == ("", 12)
    assert config.training.global_batch_size == 384  # at most 480, times 128
    assert config.training.dropout == 0


@pytest.mark.parametrize("num_replicas", [1, 8, 128])
@pytest.mark.parametrize("length", [64, 180, 1024])
@pytest.mark.parametrize("num_tokens", [100, 500_000, 10**8, 10**10])
def test_every_advice_is_a_config_that_runs(manifest, num_tokens, length, num_replicas):
    for vocabulary_size in (50257, 320):
        dataset = of(
            manifest, num_tokens, vocabulary_size=vocabulary_size, length=length
        )
        config, _ = advice.advise(dataset, num_replicas)
        validate(config)
        strategy.accumulation_steps(config.training, num_replicas)
        job, *changes = advice.flags(config)
        assert (ROOT / job.removeprefix("--config=")).exists()
        known = {f"--config.{name}" for name in schema.flatten(schema.Config())}
        assert {flag.split("=")[0] for flag in changes} <= known


def test_a_checkpoint_that_does_not_fit_is_not_advised(manifest, monkeypatch):
    planned = []

    def make(config, *_, **__):
        assert config.model.initial_checkpoint == ""  # nothing is downloaded
        planned.append(config.model.n_layer)
        return {"fits": config.model.n_layer < 36}

    monkeypatch.setattr(planner, "make", make)
    dataset = of(manifest, 2_310_000)
    config, *_ = advice.advise_for_tpu(dataset, tpu.parse("v2-8"))
    assert config.model.initial_checkpoint == "gpt2-medium"
    assert planned == [36, 24]


def test_the_program_prints_each_reason_and_the_command(small_run):
    process = programs.run("trainer.advise", f"--data_dir={small_run / 'data'}")
    assert process.returncode == 0, process.stderr
    assert "model.initial_checkpoint: the dataset has a tokenizer" in process.stdout
    command = process.stdout.splitlines()[-1]
    assert "--config.optimizer.name=adamw --config.optimizer.learning_rate=" in command
    process = programs.run(
        "trainer.advise", f"--data_dir={small_run / 'data'}", "--json"
    )
    advised = json.loads(process.stdout)["advice"]
    assert {"setting", "value", "reason", "source"} == set(advised[0])


def test_a_folder_without_a_dataset_is_one_message(tmp_path):
    process = programs.run("trainer.advise", f"--data_dir={tmp_path}")
    assert_refused(process, "must hold a finished dataset")
