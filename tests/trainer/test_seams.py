"""A second architecture and a second task, added without touching a product file.

Both live in this module alone. Registered, they train, resume, evaluate and are
planned.
"""

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from transformers import PretrainedConfig

from configs import tpu
from tests import programs
from tests.conftest import tiny_config
from tests.trainer.planning.test_planner import needs_compiler
from tfrecords.windows import Windows
from trainer.checkpoints import run_checkpoints
from trainer.evaluation.scoring import Scorer
from trainer.models import registry as architectures
from trainer.models.architecture import Architecture
from trainer.planning import planner
from trainer.runtime import strategy as strategies
from trainer.runtime.cluster import Cluster
from trainer.tasks import registry as tasks
from trainer.tasks.step import TrainingStep
from trainer.tasks.task import Task
from trainer.training.loop import train


class ToyConfiguration(PretrainedConfig):
    model_type = "toy"

    def __init__(self, vocab_size=97, n_positions=16, n_embd=8, **others):
        super().__init__(**others)
        self.vocab_size = vocab_size
        self.n_positions = n_positions
        self.n_embd = n_embd


class ToyModel(tf_keras.Model):
    """An embedding and a matrix."""

    def __init__(self, configuration):
        super().__init__()
        self.config = configuration
        width = configuration.n_embd
        self.table = self.add_weight("table", [configuration.vocab_size, width])
        self.matrix = self.add_weight("matrix", [width, width])


def configure(config, vocabulary_size, **token_ids):
    return ToyConfiguration(
        vocabulary_size, config.n_positions, config.n_embd, **token_ids
    )


def initialize(model, seed):
    for index, variable in enumerate(model.variables):
        variable.assign(tf.random.stateless_normal(variable.shape, [seed, index]))


def hidden_states(model, tokens, *_):
    """The mean of the embeddings so far, through a matrix."""
    embedded = tf.matmul(tf.one_hot(tokens, model.config.vocab_size), model.table)
    counts = tf.range(1.0, tokens.shape[1] + 1.0)[:, None]
    return tf.tanh(tf.matmul(tf.cumsum(embedded, axis=1) / counts, model.matrix))


def output_table(model):
    return tf.convert_to_tensor(model.table)


def step_flops(configuration, sequence_length, num_sequences):
    return 6 * configuration.n_embd**2 * sequence_length * num_sequences


def activation_values(configuration, *_):
    return configuration.n_embd


def not_needed(*_):
    raise NotImplementedError


ARCHITECTURE = Architecture(
    name="toy",
    configuration_class=ToyConfiguration,
    configure=configure,
    load_configuration=not_needed,
    build=ToyModel,
    initialize=initialize,
    load=not_needed,
    resize_vocabulary=not_needed,
    load_tokenizer=not_needed,
    hidden_states=hidden_states,
    output_table=output_table,
    step_flops=step_flops,
    activation_values=activation_values,
    as_transformers=not_needed,
)


def first_token_losses(architecture, model, batch, options):
    """The losses of naming a record's first token at its end, weights, and hits."""
    hidden = architecture.hidden_states(model, batch["tokens"], options)
    last = tf.maximum(batch["length"] - 1, 0)
    hidden = tf.gather(hidden, last, batch_dims=1)
    logits = tf.matmul(hidden, architecture.output_table(model), transpose_b=True)
    labels = batch["tokens"][:, 0]
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    right = tf.cast(tf.argmax(logits, 1, tf.int32) == labels, tf.float32)
    return losses, tf.cast(batch["length"] > 0, tf.float32), right


def summed_loss(architecture, model, batch, options, _):
    losses, weights, _ = first_token_losses(architecture, model, batch, options)
    return tf.reduce_sum(losses * weights), tf.reduce_sum(weights)


def evaluation_sums(architecture, model, batch, options):
    losses, weights, right = first_token_losses(architecture, model, batch, options)
    return {
        "loss_sum": tf.reduce_sum(losses * weights),
        "right": tf.reduce_sum(right * weights),
        "count": tf.reduce_sum(weights),
    }


def figures(sums, *_):
    return {
        "loss": sums["loss_sum"] / sums["count"],
        "accuracy": sums["right"] / sums["count"],
    }


TASK = Task(
    name="first_token",
    features=("length",),
    summed_loss=summed_loss,
    evaluation_sums=evaluation_sums,
    figures=figures,
    split_figures=figures,
)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(architectures.MODULES, "toy", __name__)
    monkeypatch.setitem(tasks.MODULES, "first_token", __name__)


def toy_config(**training):
    config = tiny_config(
        **{
            "task": "first_token",
            "num_steps": 4,
            "evaluation_interval": 2,
            "checkpoint_interval": 2,
            "dropout": 0.0,
            **training,
        }
    )
    config.model.architecture = "toy"
    config.model.n_embd = 8
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 0.05
    return config


def run(dataset, workdir, config, num_replicas=2):
    cluster = Cluster(strategies.mirror_cpu(num_replicas))
    train(config, str(dataset[0]), str(workdir), cluster)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def values(workdir):
    model = run_checkpoints.load_model(str(workdir)).model
    return [variable.numpy() for variable in model.variables]


def test_a_toy_trains_and_resumes_bit_for_bit(dataset, tmp_path):
    lines = run(dataset, tmp_path / "whole", toy_config(num_steps=8))
    scores = [line for line in lines if "validation_loss" in line]
    assert [line["step"] for line in scores] == [0, 2, 4, 6, 8]
    assert scores[-1]["validation_loss"] < scores[0]["validation_loss"]
    assert all(0 <= line["validation_accuracy"] <= 1 for line in scores)
    assert not any("memorization" in line for line in lines)

    class StoppedError(Exception):
        pass

    with pytest.MonkeyPatch.context() as patch:
        save, steps = run_checkpoints.Checkpoints.save, []

        def save_and_stop(self, best_step=0):
            save(self, best_step)
            steps.append(best_step)
            if len(steps) == 2:
                raise StoppedError

        patch.setattr(run_checkpoints.Checkpoints, "save", save_and_stop)
        with pytest.raises(StoppedError):
            run(dataset, tmp_path / "stopped", toy_config(num_steps=8))
    run(dataset, tmp_path / "stopped", toy_config(num_steps=8))
    both = zip(values(tmp_path / "whole"), values(tmp_path / "stopped"), strict=True)
    for whole, resumed in both:
        np.testing.assert_array_equal(whole, resumed)


def test_a_toy_is_evaluated_with_the_figures_of_its_task(dataset, tmp_path):
    lines = run(dataset, tmp_path / "run", toy_config(), num_replicas=1)
    loaded = run_checkpoints.load_model(str(tmp_path / "run"))
    assert loaded.architecture is ARCHITECTURE
    assert isinstance(loaded.model.config, ToyConfiguration)
    folder, manifest = dataset
    windows = Windows(
        str(folder), manifest, split="validation", context_length=8, stride=8
    )
    strategy = strategies.mirror_cpu(1)
    step = TrainingStep(loaded.model, loaded.architecture, TASK)
    result = TASK.split_figures(Scorer(step, strategy, windows, batch_size=2)())
    assert result["loss"] == pytest.approx(lines[-1]["validation_loss"], rel=1e-5)


@needs_compiler
def test_a_toy_is_planned(dataset):
    programs.start_server()
    config = toy_config(global_batch_size=8, microbatch_size=1)
    plan = planner.make(config, tpu.parse("v3-8"), dataset[1], find_max=False)
    assert plan["fits"]
    assert plan["parameter_count"] == 97 * 8 + 8 * 8
    assert plan["replicas_added_up"] == 8


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"xlnet, toy\. Received: 'gtp2'"):
        architectures.get("gtp2")
    with pytest.raises(ValueError, match=r"_lm, first_token\. Received: 'x'"):
        tasks.check("x")
