"""Adafactor against the paper in NumPy, and against optax."""

import numpy as np
import pytest
import tensorflow as tf
from transformers import GPT2Config

from configs.schema import OptimizerConfig
from trainer.models.gpt2 import weights
from trainer.models.variables import num_bytes as num_bytes_of
from trainer.optimizers import factory
from trainer.optimizers.adafactor import Adafactor
from trainer.optimizers.schedule import Schedule

SHAPES = {"matrix": (6, 10), "tall": (33, 4), "vector": (7,), "bias": (1, 9)}
STEPS = 20


def gradients(step):
    generator = np.random.default_rng(step)
    return {
        # Scales far apart, a row without gradient: what embeddings get.
        name: generator.normal(size=shape).astype(np.float32)
        * 10.0 ** generator.integers(-3, 2)
        * (np.arange(shape[0]) != 2).reshape(-1, *[1] * (len(shape) - 1))
        for name, shape in SHAPES.items()
    }


def initial():
    generator = np.random.default_rng(99)
    return {n: generator.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}


def run_ours(learning_rate, steps=STEPS, **kwargs):
    variables = {n: tf.Variable(v, name=n) for n, v in initial().items()}
    rule = Adafactor(learning_rate, **kwargs)
    rule.build(list(variables.values()))
    for step in range(steps):
        grads = gradients(step)
        rule.apply_gradients([(tf.constant(grads[n]), v) for n, v in variables.items()])
    return {name: variable.numpy() for name, variable in variables.items()}


def test_the_paper_in_numpy():
    """Algorithm 4 with means for sums, section 6's clipping, section 7.2's decay."""
    x = initial()["matrix"].astype(np.float64)
    row, column = np.zeros(6), np.zeros(10)
    for t in range(1, 6):
        g = gradients(t - 1)["matrix"].astype(np.float64)
        beta_2 = 1 - t**-0.8
        row = beta_2 * row + (1 - beta_2) * (g**2 + 1e-30).mean(axis=1)
        column = beta_2 * column + (1 - beta_2) * (g**2 + 1e-30).mean(axis=0)
        u = g / np.sqrt(np.outer(row, column) / row.mean())
        u /= max(1.0, np.sqrt((u**2).mean()))
        x -= 0.01 * u
    np.testing.assert_allclose(run_ours(0.01, steps=5)["matrix"], x, rtol=2e-5)


# Each pair of values of two settings.
@pytest.mark.parametrize(
    ("momentum", "parameter_scale", "weight_decay"),
    [(0.0, False, 0.0), (0.0, True, 0.1), (0.9, False, 0.1), (0.9, True, 0.0)],
)
def test_equals_optax(momentum, parameter_scale, weight_decay):
    jax = pytest.importorskip("jax", reason="needs the extra `parity`")
    optax = pytest.importorskip("optax", reason="needs the extra `parity`")
    rate = 0.01
    judge = optax.adafactor(
        rate,
        min_dim_size_to_factor=2,
        multiply_by_parameter_scale=parameter_scale,
        momentum=momentum or None,
        # optax does not multiply the decay by the learning rate.
        weight_decay_rate=rate * weight_decay or None,
    )
    parameters = initial()
    state = judge.init(parameters)
    for step in range(STEPS):
        updates, state = judge.update(gradients(step), state, parameters)
        parameters = jax.tree.map(lambda p, u: p + u, parameters, updates)
    ours = run_ours(
        rate,
        beta_1=momentum,
        parameter_scale=parameter_scale,
        weight_decay=weight_decay,
    )
    for name, value in parameters.items():
        np.testing.assert_allclose(
            ours[name], value, rtol=1e-6, atol=1e-6, err_msg=name
        )


def test_relative_step_equals_optax():
    jax = pytest.importorskip("jax", reason="needs the extra `parity`")
    optax = pytest.importorskip("optax", reason="needs the extra `parity`")
    judge = optax.adafactor(
        lambda step: jax.numpy.minimum(1e-2, (step + 1.0) ** -0.5),
        min_dim_size_to_factor=2,
    )
    parameters = initial()
    state = judge.init(parameters)
    for step in range(STEPS):
        updates, state = judge.update(gradients(step), state, parameters)
        parameters = jax.tree.map(lambda p, u: p + u, parameters, updates)
    config = OptimizerConfig(learning_rate=1e-2, schedule="relative_step")
    ours = run_ours(Schedule(config, STEPS), parameter_scale=True)
    for name, value in parameters.items():
        np.testing.assert_allclose(
            ours[name], value, rtol=1e-6, atol=1e-6, err_msg=name
        )


def test_state_is_rows_and_columns_only():
    variables = [tf.Variable(v) for v in initial().values()]
    rule = Adafactor(0.01)
    rule.build(variables)
    slots = [v.shape.as_list() for v in rule.variables if v.shape.rank]
    assert sorted(slots) == sorted([[6], [10], [33], [4], [7], [1, 9]])


def test_state_of_gpt2_small_is_under_one_percent_of_its_weights():
    gpt2 = weights.build(GPT2Config())  # 124M: the default shape is GPT-2 small
    config = OptimizerConfig(name="adafactor")
    variables = gpt2.trainable_variables
    rule = factory.create(config, Schedule(config, 10), variables)
    num_bytes = 4 * sum(v.shape.num_elements() for v in variables)
    assert num_bytes == 4 * 124_439_808
    assert num_bytes_of(rule.variables) < num_bytes / 100


@pytest.mark.parametrize("name", ["adafactor", "adamw", "muon", "sgd"])
def test_decay_spares_biases_and_layer_norms(name, caplog):
    caplog.set_level("INFO")
    gpt2 = weights.build(GPT2Config(vocab_size=9, n_embd=4, n_layer=2, n_head=1))
    variables = gpt2.trainable_variables
    for variable in variables:
        variable.assign(tf.ones_like(variable))
    config = OptimizerConfig(
        name=name, weight_decay=0.5, learning_rate=0.1, schedule="constant"
    )
    config.warmup_fraction = 0.0
    rule = factory.create(config, Schedule(config, 10), variables)
    rule.apply_gradients([(tf.zeros_like(v), v) for v in variables])
    for variable in variables:
        is_weight = variable.name.endswith(("weight:0", "embeddings:0"))
        expected = 0.95 if is_weight else 1.0
        np.testing.assert_allclose(variable, expected * np.ones(variable.shape), 1e-6)
    assert "transformer.h.*.attn.c_attn.weight (x 2)" in caplog.text
    assert "ln_1" not in caplog.text
