"""Configs train on a CPU at their real width, vocabulary, context and precision.

Cut are the layers, to one or two, and the global batch; the weights are random, since
the checkpoints are not on this machine. The layers of a model are alike: all twelve of
`gpt2_small` have one test. `gpt2_large` and `gpt2_xl` take too much memory beside
another test, and run alone. Three more configs have no case of their own:
`gpt2_xl_lora` has the shape of `gpt2_xl`, and `test_adapter.py` trains adapters;
`gpt2_small_pretrain` has the shape and microbatch of `distilgpt2` and the optimizer of
`gpt2_small`, and `quickstart` runs unchanged in `test_end_to_end.py`.
"""

import gc
import importlib
import json
import re

import numpy as np
import pytest
import tf_keras

from configs import schema, tpu
from configs.validation import validate
from data_pipeline import pipeline
from data_pipeline.job import plan_job
from tests.conftest import ROOT, write_dataset
from tests.data_pipeline.runs import in_process
from trainer.runtime import preemption, strategy
from trainer.runtime.cluster import Cluster
from trainer.runtime.strategy import mirror_cpu
from trainer.tasks.step import TrainingStep
from trainer.training.loop import train

# Config -> global batch, and what it is in the config: a sequence takes seconds. On two
# devices, a microbatch of 4 becomes one of 2. `gpt2_small` accumulates on one device,
# and `gpt2_medium` and larger ones on two.
GLOBAL_BATCH_SIZES = {
    "gpt2_small": 2,  # 8
    "gpt2_medium": 4,  # 8
    "gpt2_large": 4,  # 8
    "gpt2_xl": 4,  # 8
    "distilgpt2": 4,  # 32
    "wikitext2_cpu": 4,  # 4
}


LARGE = ("gpt2_large", "gpt2_xl")

# What people use GPT-2 for; their docstrings name a TPU and a trap.
RECIPES = (
    *("wikitext2", "wikitext103", "distilgpt2", "cooking", "jokes", "tiny_corpus"),
    *("chinese_gpt2", "gpt2_small_pretrain", "gpt2_small_fineweb"),
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Returns the folder of a dataset for a config; each kind is written once."""
    parent, written = tmp_path_factory.mktemp("data"), {}

    def write(config):
        length, size = config.data.sequence_length, config.data.vocab_size
        key = (length, size)
        if key not in written:
            written[key] = parent / f"{length}-{size}"
            tokens = np.random.default_rng(0).integers(0, size, 33 * length)
            write_dataset(
                written[key],
                train_tokens=tokens[: 32 * length],
                validation_tokens=tokens[32 * length :],
                sequence_length=length,
                num_shards=1,
                vocabulary_size=size,
            )
        return str(written[key])

    return write


def load(name, *, num_layers, num_steps):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.model.initial_checkpoint = ""
    config.model.n_layer = num_layers
    config.optimizer.warmup_steps = 0
    config.training.num_steps = num_steps
    config.training.global_batch_size = GLOBAL_BATCH_SIZES[name]
    config.training.evaluation_interval = config.training.checkpoint_interval = 0
    config.training.steps_per_execution = min(num_steps, 2)
    config.tracking.sample_interval = 0
    config.tracking.sample_tokens = 2
    validate(config)
    return config


def run(config, data_dir, workdir, *, num_devices, num_steps, monkeypatch):
    """Trains some steps, each in an execution of the loop over steps, and stops."""
    fit = TrainingStep.fit

    def in_executions(training_step, batches, *, steps_per_epoch, **kwargs):
        for _ in range(num_steps):
            fit(training_step, batches, steps_per_epoch=1, **kwargs)
        if steps_per_epoch > num_steps:
            raise preemption.PreemptedError("stopped")

    monkeypatch.setattr(TrainingStep, "fit", in_executions)
    try:
        train(config, data_dir, str(workdir), Cluster(mirror_cpu(num_devices)))
    except preemption.PreemptedError:
        pass
    finally:
        monkeypatch.setattr(TrainingStep, "fit", fit)
        tf_keras.backend.clear_session()
        gc.collect()


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.alone if name in LARGE else ())
        for name in GLOBAL_BATCH_SIZES
    ],
)
def test_a_config_trains(name, data_dir, tmp_path, monkeypatch):
    """On two devices; it is evaluated, saved and sampled from."""
    # GPT-2 small first trains on one device, and continues. It has two executions on
    # each: what one leaves behind would be in the way of the next.
    is_small = name == "gpt2_small"
    at_once = 2 if is_small else 1
    num_steps = 4 if is_small else 1
    config = load(name, num_layers=2 if is_small else 1, num_steps=num_steps)
    for num_devices in (1, 2) if is_small else (2,):
        config.tracking.sample_interval = num_steps * (num_devices == 2)
        if num_devices == 2 and config.training.microbatch_size > 1:
            config.training.microbatch_size //= 2
        run(
            config,
            data_dir(config),
            tmp_path,
            num_devices=num_devices,
            num_steps=at_once,
            monkeypatch=monkeypatch,
        )
    metrics = read(tmp_path / "metrics.jsonl")
    losses = {line["step"]: line["loss"] for line in metrics if "loss" in line}
    scores = {line["step"] for line in metrics if "validation_loss" in line}
    assert sorted(losses) == list(range(1, num_steps + 1))
    assert np.isfinite(list(losses.values())).all()
    assert scores == {0, num_steps}
    samples = read(tmp_path / "samples.jsonl")
    assert samples[-1]["step"] == num_steps


@pytest.mark.slow
def test_the_whole_of_gpt2_small_trains(data_dir, tmp_path, monkeypatch):
    """All twelve layers, on one device, where two microbatches are accumulated."""
    config = load("gpt2_small", num_layers=12, num_steps=2)
    run(
        config,
        data_dir(config),
        tmp_path,
        num_devices=1,
        num_steps=2,
        monkeypatch=monkeypatch,
    )
    metrics = read(tmp_path / "metrics.jsonl")
    losses = [line["loss"] for line in metrics if "loss" in line]
    assert len(losses) == 2
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_short_and_divides_over_its_tpu(name):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config()
    lines = (ROOT / "configs" / f"{name}.py").read_text().splitlines()
    (code,) = [n for n, line in enumerate(lines) if line.startswith("def ")]
    assert len(lines) - code <= 30
    assert "\nCost " in module.__doc__
    assert "\nTrap " in module.__doc__
    hardware = re.search(
        r"^Hardware +(v\w+-\d+): (\d+) replicas? x microbatch (\d+)"
        r"(?: x (\d+) accumulation steps)?",
        module.__doc__,
        re.M,
    )
    tpu_type = tpu.parse(hardware[1])
    settings = config.training
    assert (tpu_type.num_replicas, settings.microbatch_size) == (
        int(hardware[2]),
        int(hardware[3]),
    )
    accumulation_steps = strategy.accumulation_steps(settings, tpu_type.num_replicas)
    assert accumulation_steps == int(hardware[4] or 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains_five_shrunk_steps(name, tmp_path):
    """From its own kind of records: only the sizes are cut, and the weights random."""
    config = importlib.import_module(f"configs.{name}").get_config()
    field, line = config.data.text_field, "beef , salt @-@ and pepper {0} times {0}\n"
    rows = [{field: line.format(number) * (number % 5 + 1)} for number in range(60)]
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config.data.input = str(tmp_path / "text.jsonl")
    config.data.tokenizer, config.data.vocab_size = "train", 320
    config.data.sequence_length = min(config.data.sequence_length // 16, 16)
    config.data.num_shards, config.data.validation_fraction = 1, None
    config.model = schema.ModelConfig(
        n_layer=1, n_head=2, n_embd=16, n_positions=16, lora=config.model.lora
    )
    training = config.training
    training.global_batch_size, training.microbatch_size = 4, 4
    config.optimizer.warmup_steps = 0
    training.num_steps, training.steps_per_execution = 5, 5
    training.evaluation_interval = training.checkpoint_interval = 5
    config.tracking.sample_interval = 0
    config.hardware.tpu_type = ""
    validate(config)
    data = str(tmp_path / "data")
    pipeline.preprocess(plan_job(config), data, in_process, overwrite=False)
    train(config, data, str(tmp_path / "run"), Cluster(mirror_cpu(1)))
    (losses, *_) = [
        line["loss"]
        for line in read(tmp_path / "run" / "metrics.jsonl")
        if "loss" in line
    ]
    assert np.isfinite(losses)
    tf_keras.backend.clear_session()
