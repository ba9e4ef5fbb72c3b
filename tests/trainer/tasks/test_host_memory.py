"""The estimate of what a run on a CPU takes of the machine's memory."""

import logging

import pytest

from configs import gpt2_small
from configs.schema import OptimizerConfig
from tests.conftest import tiny_model
from trainer.models.gpt2.architecture import ARCHITECTURE as GPT2
from trainer.models.variables import num_bytes
from trainer.optimizers import factory
from trainer.optimizers.schedule import Schedule
from trainer.tasks import host_memory


@pytest.fixture(scope="module")
def gpt2():
    return tiny_model()


def estimate(gpt2, num_replicas=1, *, optimizer="adafactor", **training):
    config = gpt2_small.get_config()
    config.optimizer.name = optimizer
    for name, value in training.items():
        setattr(config.training, name, value)
    return host_memory.estimate(gpt2, gpt2.variables, GPT2, config, 16, num_replicas)


def muon_bytes(gpt2):
    """Returns the bytes of what Muon really keeps."""
    config = OptimizerConfig(name="muon")
    rule = factory.create(config, Schedule(config, 10), gpt2.trainable_variables)
    return num_bytes(variable for variable in rule.variables if variable.shape.rank)


def test_each_setting_counts_where_it_should(gpt2):
    plain = estimate(gpt2)
    assert plain["weights"] == 4 * gpt2.num_parameters()
    assert estimate(gpt2, 2)["gradients"] == 2 * plain["gradients"]
    assert estimate(gpt2, optimizer="adamw")["optimizer state"] == 2 * plain["weights"]
    assert estimate(gpt2, optimizer="muon")["optimizer state"] == muon_bytes(gpt2)
    for changed in ({"microbatch_size": 2}, {"precision": "float32"}):
        activations = estimate(gpt2, **changed)["activations"]
        assert activations == pytest.approx(2 * plain["activations"], abs=2)
    order = [
        estimate(gpt2, remat=remat)["activations"]
        for remat in ("none", "attention", "block")
    ]
    assert order == sorted(order, reverse=True)


@pytest.mark.parametrize(("available", "warns"), [(2**20, True), (2**40, False)])
def test_too_little_memory_is_a_warning(gpt2, caplog, available, warns):
    with caplog.at_level(logging.INFO):
        host_memory.report(estimate(gpt2), available)
    assert "training takes about" in caplog.text
    assert ("may be killed" in caplog.text) == warns


def test_the_available_memory_is_known_here():
    assert 2**28 < host_memory.system_memory() < 2**50


def test_an_evaluation_takes_1024_tokens_or_more_at_once(gpt2):
    sizes = {(1, 128): 8, (16, 128): 16, (1, 180): 6, (1, 2048): 1}
    for arguments, size in sizes.items():
        assert host_memory.evaluation_batch_size(*arguments) == size
    vocabulary, channels = GPT2.output_table(gpt2).shape
    logits, with_table = (
        estimate(gpt2, microbatch_size=1, precision=precision)["logits"]
        for precision in ("float32", "bfloat16")
    )
    assert logits == 2 * 1024 * vocabulary * 4
    assert with_table == logits + 2 * vocabulary * channels * 2
