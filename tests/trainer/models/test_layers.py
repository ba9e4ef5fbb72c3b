"""Layers against float64, with the inputs that are worst for them."""

import numpy as np
import pytest
import tensorflow as tf

from trainer.models.gpt2 import forward
from trainer.models.layers import cross_entropy

N, C, V = 64, 32, 199


def by_definition(hidden, table, labels, weights):
    """Loss and gradients in float64, by TensorFlow's own operation."""
    hidden, table = tf.cast(hidden, tf.float64), tf.cast(table, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch([hidden, table])
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels, tf.einsum("btc,vc->btv", hidden, table)
        )
        loss = tf.reduce_sum(losses * tf.cast(weights, tf.float64))
    return loss, tape.gradient(loss, [hidden, table])


def ours(hidden, table, labels, weights, compiled, on_cpu=False):
    @tf.function(jit_compile=compiled, autograph=False)
    def compute(hidden, table):
        with tf.GradientTape() as tape:
            tape.watch([hidden, table])
            loss = cross_entropy.summed_loss(
                *(hidden, table, labels, weights), compiled=compiled, on_cpu=on_cpu
            )
        return loss, tape.gradient(loss, [hidden, table])

    return compute(hidden, table)


def error(values, expected):
    """The norm of the difference, in parts of the norm."""
    return float(tf.norm(tf.cast(values, tf.float64) - expected) / tf.norm(expected))


# Logits of about 300 differ by more than exp() can take from the label's on.
@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 300.0])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 4e-6), ("bfloat16", 3e-3)]
)
@pytest.mark.parametrize(
    ("compiled", "on_cpu"), [(True, False), (False, False), (False, True)]
)
def test_loss_and_gradient_are_exact_for_logits_of_any_size(
    compiled, on_cpu, dtype, tolerance, size, monkeypatch
):
    monkeypatch.setattr(cross_entropy, "CHUNK_TOKENS", 10)
    generator = np.random.default_rng(0)
    hidden = tf.cast(generator.normal(size=(2, N // 2, C)), dtype)
    table = tf.constant(generator.normal(size=(V, C)) * size / C**0.5, tf.float32)
    labels = tf.constant(generator.integers(0, V, (2, N // 2)), tf.int32)
    weights = tf.constant(generator.random((2, N // 2)), tf.float32)
    loss, gradients = ours(hidden, table, labels, weights, compiled, on_cpu)
    expected, expected_gradients = by_definition(hidden, table, labels, weights)
    assert error(loss, expected) < 2e-7
    d_hidden, d_table = expected_gradients
    assert error(gradients[1], d_table) < tolerance
    if size:  # or there is none
        assert error(gradients[0], d_hidden) < tolerance


@pytest.mark.parametrize(
    ("compiled", "on_cpu"), [(True, False), (False, False), (False, True)]
)
def test_the_gradient_of_a_sure_prediction_is_exact(compiled, on_cpu):
    """1 - probability is 4e-5 here: of a rounded one, nothing would be left."""
    hidden = tf.cast(tf.ones([1, 8, 1]), tf.bfloat16)
    table = tf.constant([[10.0], [-0.25]])
    labels, weights = tf.zeros([1, 8], tf.int32), tf.ones([1, 8])
    loss, gradients = ours(hidden, table, labels, weights, compiled, on_cpu)
    expected, expected_gradients = by_definition(hidden, table, labels, weights)
    assert error(loss, expected) < 4e-3
    assert error(gradients[1], expected_gradients[1]) < 6e-3


# ln(3.4e38) is 88.72, where float32 ends; bfloat16 does a little before.
@pytest.mark.parametrize("loss", [68.0, 70.0, 88.0, 88.72, 89.0, 200.0])
def test_the_gradient_of_a_surprise_is_exact(loss):
    """1 / exp(loss) is a denormal number from 87.3 on, which TensorFlow makes 0."""
    hidden = tf.cast(tf.ones([1, 8, 1]), tf.bfloat16)
    table = tf.constant([[0.0], [loss]])
    labels, weights = tf.zeros([1, 8], tf.int32), tf.fill([1, 8], 0.1)
    summed, gradients = ours(hidden, table, labels, weights, compiled=True)
    expected, expected_gradients = by_definition(hidden, table, labels, weights)
    assert error(summed, expected) < 1e-6
    for values, right in zip(gradients, expected_gradients, strict=True):
        assert error(values, right) < 5e-3


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(lambda noise: noise, id="normal"),
        pytest.param(lambda noise: 100 + noise, id="far from zero"),
        pytest.param(lambda noise: 3000 * tf.one_hot([5] * N, 768) + noise, id="spike"),
        pytest.param(lambda noise: 3000 * tf.one_hot([0] * N, 768) + noise, id="first"),
        pytest.param(lambda noise: 1e-3 * noise, id="small"),
        pytest.param(lambda noise: 7 + 0 * noise, id="constant"),
    ],
)
def test_a_layer_norm_is_exact_where_channels_are_not_centered(rows):
    generator = np.random.default_rng(0)
    x = rows(tf.constant(generator.normal(size=(N, 768)), tf.float32))
    weights = forward.Affine(tf.ones([768]), tf.zeros([768]))
    x64 = tf.cast(x, tf.float64)
    mean, variance = tf.nn.moments(x64, -1, keepdims=True)
    expected = (x64 - mean) / tf.sqrt(variance + 1e-5)
    for compiled in (True, False):
        norm = tf.function(forward.layer_norm, jit_compile=compiled, autograph=False)
        values = norm(x, weights, tf.constant(1e-5))
        difference = tf.reduce_max(tf.abs(tf.cast(values, tf.float64) - expected))
        assert difference < 2e-4 * max(1, tf.reduce_max(tf.abs(expected)))
