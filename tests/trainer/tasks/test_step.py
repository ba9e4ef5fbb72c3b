"""The step: however a global batch is split, the update is the same."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tensorflow.python.distribute import mirrored_strategy

from configs.schema import OptimizerConfig
from tests.conftest import VOCABULARY_SIZE, tiny_config, tiny_model, training_step
from trainer.models.architecture import Options
from trainer.models.gpt2.architecture import ARCHITECTURE as GPT2
from trainer.models.layers import cross_entropy
from trainer.optimizers import factory
from trainer.optimizers.schedule import Schedule
from trainer.optimizers.skip_nonfinite import SkippingSGD
from trainer.runtime.strategy import mirror_cpu
from trainer.tasks import causal_lm
from trainer.tasks.create import create_training_step
from trainer.tasks.step import TrainingStep

GLOBAL_BATCH = 32


def global_batch(step):
    generator = np.random.default_rng(step)
    tokens = generator.integers(0, VOCABULARY_SIZE, (GLOBAL_BATCH, 8))
    length = np.full(GLOBAL_BATCH, 8)
    # Padding lies unevenly: one replica's whole first microbatch is empty.
    length[:2] = 0
    length[[5, 11, 30]] = [1, 3, 6]
    row = np.arange(GLOBAL_BATCH)
    batch = {"tokens": tokens, "length": length, "row": row}
    return {name: values.astype(np.int32) for name, values in batch.items()}


def train(num_replicas, accumulation_steps, *, steps=3, compile_local=False, **kwargs):
    """Returns the weights and the logs after some steps on the global batches."""
    strategy = mirror_cpu(num_replicas)
    with strategy.scope():
        gpt2 = tiny_model(n_layer=1)
        task = training_step(
            gpt2,
            accumulation_steps=accumulation_steps,
            compile_local=compile_local,
            **kwargs,
        )
        # SGD: an optimizer that normalizes would hide a wrong scale.
        task.compile(optimizer=SkippingSGD(0.5, jit_compile=False))
    batches = [global_batch(step) for step in range(steps)]

    def dataset(_):
        rows = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
        per_replica = GLOBAL_BATCH // num_replicas
        return tf.data.Dataset.from_tensor_slices(rows).batch(per_replica, True)

    logs = []

    class Keep(tf_keras.callbacks.Callback):
        def on_train_batch_end(self, _, step_logs):
            logs.append(step_logs)

    task.fit(
        strategy.distribute_datasets_from_function(dataset),
        steps_per_epoch=steps,
        callbacks=[Keep()],
        verbose=0,
    )
    return [v.numpy() for v in gpt2.trainable_variables], logs


@pytest.fixture(scope="module")
def undivided():
    """1 replica x 1 accumulation step x microbatch 32."""
    return train(1, 1)


def oracle():
    """Plain SGD on the mean loss over real tokens, by transformers' own forward."""
    gpt2 = tiny_model(n_layer=1)
    losses = []
    for step in range(3):
        batch = global_batch(step)
        with tf.GradientTape() as tape:
            logits = gpt2(batch["tokens"]).logits[:, :-1]
            loss = tf.nn.sparse_softmax_cross_entropy_with_logits(
                batch["tokens"][:, 1:], logits
            )
            real = np.arange(1, 8)[None] < batch["length"][:, None]
            loss = tf.reduce_sum(loss * real) / real.sum()
        losses.append(float(loss))
        variables = gpt2.trainable_variables
        for variable, gradient in zip(
            variables, tape.gradient(loss, variables), strict=True
        ):
            variable.assign_sub(0.5 * tf.convert_to_tensor(gradient))
    return [v.numpy() for v in gpt2.trainable_variables], losses


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_the_step_is_plain_gradient_descent(undivided):
    weights, losses = oracle()
    assert_same(undivided[0], weights)
    found = [log["loss"] for log in undivided[1]]
    np.testing.assert_allclose(found, losses, rtol=1e-5)


@pytest.mark.parametrize(
    ("num_replicas", "accumulation_steps", "compile_local"),
    [
        (1, 4, True),
        (2, 4, True),
        (4, 2, False),
        (2, 1, False),
        pytest.param(8, 4, True, marks=pytest.mark.slow),
    ],
)
def test_splitting_the_batch_changes_nothing(
    undivided, num_replicas, accumulation_steps, compile_local
):
    weights, logs = train(num_replicas, accumulation_steps, compile_local=compile_local)
    assert_same(weights, undivided[0])
    for log, expected in zip(logs, undivided[1], strict=True):
        assert log["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        norm = pytest.approx(expected["gradient_norm"], rel=1e-4)
        assert log["gradient_norm"] == norm


def test_a_compiled_update_changes_nothing(undivided, monkeypatch):
    """Compiled updates are for GPUs, where MirroredStrategy joins no replicas."""
    monkeypatch.setattr(mirrored_strategy, "_is_gpu_device", lambda _: True)
    compiled = []
    function = tf.function

    def record(body=None, **options):
        if options.get("jit_compile"):
            compiled.append(body.__name__)
        return function(body, **options) if body else function(**options)

    monkeypatch.setattr(tf, "function", record)
    weights, logs = train(2, 2, compile_local=True, compile_update=True)
    assert compiled == ["local_gradients", "local_sums", "update"]
    assert_same(weights, undivided[0])
    for name in ("loss", "gradient_norm", "update_norm", "skipped_updates"):
        expected = [log[name] for log in undivided[1]]
        np.testing.assert_allclose([log[name] for log in logs], expected, rtol=1e-4)


def test_clipping_bounds_the_update():
    before = [v.numpy() for v in tiny_model(n_layer=1).trainable_variables]
    after, logs = train(1, 1, steps=1, clip_norm=0.01)
    assert logs[0]["gradient_norm"] > 0.01
    moved = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(after, before)))  # noqa: B905
    assert moved == pytest.approx(0.5 * 0.01, rel=1e-3)


@pytest.fixture(scope="module")
def with_dropout():
    """The weights of `undivided` with dropout, after 2 steps."""
    return train(1, 1, steps=2, dropout=0.2)[0]


def test_dropout_is_reproducible_and_depends_on_the_seed(with_dropout):
    same, other = (train(1, 1, steps=2, dropout=0.2, seed=seed)[0] for seed in (0, 1))
    for a, b in zip(with_dropout, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(same, other, strict=True))


@pytest.mark.parametrize(
    ("remat", "on_cpu"),
    [("none", False), ("attention", False), ("block", False), ("none", True)],
)
def test_dropout_does_not_depend_on_how_the_batch_is_split(
    monkeypatch, with_dropout, remat, on_cpu
):
    """Nor on what is computed again for the gradient, nor on the layout."""
    # The loop over chunks of tokens, inside that over microbatches.
    monkeypatch.setattr(cross_entropy, "CHUNK_TOKENS", 12)
    options = Options(remat=remat, on_cpu=on_cpu)
    split, _ = train(2, 4, steps=2, dropout=0.2, options=options)
    assert_same(split, with_dropout)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_cpu_computes_gpt2_in_its_own_layout(dataset, precision):
    (_, manifest), strategy = dataset, mirror_cpu(1)
    with strategy.scope():
        step = create_training_step(
            tiny_config(precision=precision), manifest, strategy, num_steps=10
        )
    assert step.options.on_cpu
    assert not step.options.compiled


def test_a_batch_of_padding_only_changes_nothing():
    gpt2 = tiny_model(n_layer=1)
    task = training_step(gpt2)
    task.compile(optimizer=SkippingSGD(0.5, jit_compile=False))
    before = [v.numpy() for v in gpt2.trainable_variables]
    zeros = tf.zeros([4], tf.int32)
    empty = {"tokens": tf.zeros([4, 8], tf.int32), "length": zeros, "row": zeros}
    logs = task.train_step(empty)
    assert float(logs["loss"]) == 0.0
    for variable, value in zip(gpt2.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.parametrize(
    ("name", "compile_local"),
    [("adafactor", True), ("adamw", True), ("muon", True), ("sgd", False)],
)
def test_an_update_that_is_not_finite_is_skipped(name, compile_local):
    """On all replicas, though it is not finite on one of them only."""

    def poisoned(architecture, model, batch, *settings):
        loss, count = causal_lm.summed_loss(architecture, model, batch, *settings)
        bad = tf.reduce_any(batch["tokens"] == VOCABULARY_SIZE - 1)
        return loss * tf.where(bad, np.nan, 1.0), count

    poisoned_task = dataclasses.replace(causal_lm.TASK, summed_loss=poisoned)
    strategy = mirror_cpu(2)
    config = OptimizerConfig(
        name=name, learning_rate=0.1, weight_decay=0.1, beta_1=0.9, warmup_fraction=0
    )
    with strategy.scope():
        gpt2 = tiny_model(n_layer=1)
        task = TrainingStep(
            gpt2,
            GPT2,
            poisoned_task,
            accumulation_steps=2,
            compile_local=compile_local,
        )
        variables = gpt2.trainable_variables
        rule = factory.create(config, Schedule(config, 10), variables)
        task.compile(optimizer=rule)
    states = []
    step = tf.function(lambda batch: strategy.run(task.train_step, (batch,)))
    for number, is_bad in enumerate([False, True, True, False]):
        batch = global_batch(number)
        batch["tokens"] %= VOCABULARY_SIZE - 1
        batch["tokens"][-1, 0] += is_bad * (VOCABULARY_SIZE - 1)
        batch["tokens"][-1, 0] = min(batch["tokens"][-1, 0], VOCABULARY_SIZE - 1)
        half = GLOBAL_BATCH // 2
        parts = [
            {name: values[half * index :][:half] for name, values in batch.items()}
            for index in range(2)
        ]
        logs = step(
            strategy.experimental_distribute_values_from_function(
                lambda context: {
                    name: tf.constant(values)
                    for name, values in parts[context.replica_id_in_sync_group].items()
                }
            )
        )
        logs = {k: strategy.experimental_local_results(v) for k, v in logs.items()}
        assert np.isfinite(logs["loss"][0]) == (not is_bad)
        states.append(
            [
                [part.numpy() for part in strategy.experimental_local_results(variable)]
                for variable in (*variables, *rule.variables)
                if variable.dtype == tf.float32
            ]
        )
    same = [
        all(np.array_equal(a, b) for a, b in zip(states[i], states[i + 1], strict=True))
        for i in range(3)
    ]
    assert same == [True, True, False]
    assert int(rule.iterations.numpy()) == 4
    assert int(task.skipped_updates.numpy()) == 2
    assert int(task.skipped_in_a_row.numpy()) == 0


def test_accumulated_gradients_can_be_large():
    """Uncompiled, in executions of several steps, as with GPT-2's vocabulary.

    Where the tensors of a device take more than 200 MB, TensorFlow's optimizer adds
    large ones in temporary variables; the second execution found them there already.
    """
    size = 800_000
    batches = tf.data.Dataset.from_tensors(
        {
            "tokens": tf.reshape(tf.range(0, size, size // 8), [2, 4]),
            "length": tf.fill([2], 4),
            "row": tf.range(2),
        }
    ).repeat()
    losses = []
    for steps_per_execution in (1, 2):
        task = training_step(
            tiny_model(n_layer=1, vocab_size=size), accumulation_steps=2
        )
        task.compile(
            optimizer=SkippingSGD(0.5, jit_compile=False),
            steps_per_execution=steps_per_execution,
        )
        history = task.fit(batches, steps_per_epoch=4, verbose=0).history
        losses += history["loss"]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
