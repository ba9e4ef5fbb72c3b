"""No prediction depends on what it must not see, and a model that leaks is refused."""

import dataclasses
import json

import pytest
import tensorflow as tf

from configs.errors import UserError
from configs.schema import ModelConfig
from tests.conftest import tiny_config
from trainer.models import registry as architectures
from trainer.models.layers import attention
from trainer.models.xlnet import forward as xlnet_forward
from trainer.runtime.cluster import Cluster
from trainer.runtime.strategy import mirror_cpu
from trainer.tasks import causal_lm, leaks, permutation_lm
from trainer.tasks import registry as tasks
from trainer.training.loop import train

SHAPE = ModelConfig(n_layer=3, n_head=2, n_embd=16, n_positions=32, embedding_size=8)


def check(architecture, task):
    leaks.check(architecture, task, architecture.configure(SHAPE, 97), 32)


@pytest.mark.parametrize("name", architectures.MODULES)
def test_no_architecture_leaks(name):
    architecture = architectures.get(name)
    check(architecture, tasks.get(architecture.task))


def test_every_task_says_what_it_must_not_see():
    """A classifier predicts no token."""
    every = [tasks.get(name) for name in tasks.MODULES]
    assert all(task.predictions or task.classifies for task in every)


def test_gpt2_without_its_mask_is_refused(monkeypatch):
    monkeypatch.setattr(attention, "_mask", lambda scores, *_: scores)
    with pytest.raises(UserError, match="token 1 changes prediction 0, and 65 more"):
        check(architectures.get("gpt2"), causal_lm.TASK)


def test_xlnet_as_a_causal_model_is_refused():
    """Labels are the inputs and no mask is given: each token sees itself."""
    with pytest.raises(UserError, match=r"=xlnet` with `training.task=causal_lm`"):
        check(architectures.get("xlnet"), causal_lm.TASK)


@pytest.mark.parametrize("dropped", ["all masks", "targets see themselves", "content"])
def test_xlnet_without_a_mask_is_refused(monkeypatch, dropped):
    xlnet, states = architectures.get("xlnet"), xlnet_forward.target_states

    def forgetful(model, tokens, unseen, *rest):
        if dropped == "all masks":
            unseen = tf.zeros_like(unseen)
        elif dropped == "targets see themselves":
            unseen &= ~tf.eye(tokens.shape[1], dtype=tf.bool)
        return states(model, tokens, unseen, *rest)

    if dropped == "content":
        # The query stream is masked, but reads of tokens that have seen its target.
        layer = xlnet_forward._attention

        def unmasked(*inputs, site, **settings):
            is_content = (site - xlnet_forward._FIRST_SITE) % 8 == 0
            *others, unseen, keys = inputs
            unseen = tf.zeros_like(unseen) if is_content else unseen
            return layer(*others, unseen, keys, site=site, **settings)

        monkeypatch.setattr(xlnet_forward, "_attention", unmasked)
    leaky = dataclasses.replace(xlnet, target_states=forgetful)
    with pytest.raises(UserError, match="depend on what it predicts"):
        check(leaky, permutation_lm.TASK)


def test_states_that_are_not_numbers_do_not_pass():
    def broken(_, tokens, *__):
        return tf.fill([*tokens.shape, 4], float("nan"))

    gpt2 = dataclasses.replace(architectures.get("gpt2"), hidden_states=broken)
    with pytest.raises(UserError, match="depend on what it predicts"):
        check(gpt2, causal_lm.TASK)


GPT2 = architectures.get("gpt2")


def table(model):
    return tf.linalg.l2_normalize(GPT2.output_table(model), 1)


def next_tokens(model, tokens, *settings):
    """The state is the embedding of the token that is to be predicted."""
    honest = GPT2.hidden_states(model, tokens, *settings)
    return 0.0 * honest + 1e4 * tf.gather(table(model), tf.roll(tokens, -1, axis=1))


ARCHITECTURE = dataclasses.replace(
    GPT2, name="leaky", hidden_states=next_tokens, output_table=table
)
TASK = dataclasses.replace(causal_lm.TASK, name="unchecked", predictions=None)


def test_a_run_is_refused_before_it_starts_and_an_alarm_catches_the_rest(
    dataset, tmp_path, monkeypatch, caplog
):
    monkeypatch.setitem(architectures.MODULES, "leaky", __name__)
    monkeypatch.setitem(tasks.MODULES, "unchecked", __name__)
    config = tiny_config(num_steps=2, dropout=0.0)
    config.model.architecture = "leaky"
    arguments = (config, str(dataset[0]), str(tmp_path), Cluster(mirror_cpu(1)))
    with pytest.raises(UserError, match="architecture=leaky"):
        train(*arguments)
    assert not (tmp_path / "metrics.jsonl").exists()
    config.training.task = "unchecked"
    train(*arguments)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    levels = [json.loads(line).get("too_good") for line in lines]
    assert [level for level in levels if level is not None] == [1, 1]
    assert "is too good to be true: the text's own bigrams make" in caplog.text
