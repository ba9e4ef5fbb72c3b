"""The estimate of what a run on a CPU takes of the machine's memory."""

import logging

import pytest
from transformers import GPT2Config

from configs import gpt2_small
from tests.conftest import tiny_model
from trainer import host_memory


def estimate(num_replicas=1, *, optimizer="adafactor", **training):
    config = gpt2_small.get_config()
    config.optimizer.name = optimizer
    for name, value in training.items():
        setattr(config.training, name, value)
    return host_memory.estimate(GPT2Config(), config, 1024, num_replicas)


def test_the_weights_are_those_of_the_model():
    gpt2 = tiny_model()
    found = host_memory.estimate(gpt2.config, gpt2_small.get_config(), 16, 1)
    assert found["weights"] == 4 * gpt2.num_parameters()


def test_each_setting_counts_where_it_should():
    plain = estimate()
    assert estimate(2)["gradients"] == 2 * plain["gradients"]
    assert estimate(optimizer="adamw")["optimizer state"] == 2 * plain["weights"]
    assert estimate(microbatch_size=2)["activations"] == 2 * plain["activations"]
    assert estimate(precision="float32")["activations"] == 2 * plain["activations"]
    order = [estimate(remat=r)["activations"] for r in ("none", "attention", "block")]
    assert order == sorted(order, reverse=True)


@pytest.mark.parametrize(("available", "warns"), [(2**30, True), (2**40, False)])
def test_too_little_memory_is_a_warning(monkeypatch, caplog, available, warns):
    monkeypatch.setattr(host_memory, "_available_bytes", lambda: available)
    with caplog.at_level(logging.INFO):
        host_memory.report(GPT2Config(), gpt2_small.get_config(), 1024, 1)
    assert "training takes about" in caplog.text
    assert ("may be killed" in caplog.text) == warns


def test_the_available_memory_is_known_here():
    assert 2**28 < host_memory._available_bytes() < 2**50
