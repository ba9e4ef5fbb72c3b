"""The training forward against transformers' own."""

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import VOCABULARY_SIZE, tiny_model
from trainer import forward


@pytest.fixture(scope="module")
def gpt2():
    return tiny_model()


@pytest.fixture(scope="module")
def batch():
    tokens = np.random.default_rng(1).integers(0, VOCABULARY_SIZE, (3, 12))
    return tf.constant(tokens, tf.int32), tf.constant([12, 7, 0])


def transformers_loss(gpt2, tokens, length):
    """Sums transformers' logits' losses in NumPy, in float64."""
    logits = gpt2(tokens).logits.numpy().astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    total = count = 0
    for row in range(len(tokens)):
        for position in range(1, int(length[row])):
            label = int(tokens[row, position])
            total -= log_probabilities[row, position - 1, label]
            count += 1
    return total, count


@pytest.mark.parametrize("compiled", [False, True])
def test_logits_equal_transformers(gpt2, batch, compiled):
    @tf.function(jit_compile=compiled)
    def ours(tokens):
        return forward.logits(gpt2, forward.hidden_states(gpt2, tokens))

    theirs = gpt2(batch[0]).logits
    np.testing.assert_allclose(ours(batch[0]), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_loss_counts_real_tokens_only_and_shifts_once(gpt2, batch, compiled):
    function = tf.function(forward.summed_loss, jit_compile=compiled)
    loss, count = function(gpt2, *batch)
    expected, expected_count = transformers_loss(gpt2, *batch)
    assert int(count) == expected_count == 11 + 6
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_what_padding_holds_changes_nothing(gpt2, batch):
    tokens, length = batch
    other = tf.where(tf.range(12) < length[:, None], tokens, 5)
    loss, _ = forward.summed_loss(gpt2, tokens, length)
    other_loss, _ = forward.summed_loss(gpt2, other, length)
    assert float(loss) == pytest.approx(float(other_loss), rel=1e-6)


def test_gradients_equal_transformers(gpt2, batch):
    tokens = batch[0]
    variables = gpt2.trainable_variables
    with tf.GradientTape() as tape:
        loss, _ = forward.summed_loss(gpt2, tokens, tf.fill([3], 12))
    ours = tape.gradient(loss, variables)
    with tf.GradientTape() as tape:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            tokens[:, 1:], gpt2(tokens).logits[:, :-1]
        )
        loss = tf.reduce_sum(losses)
    theirs = tape.gradient(loss, variables)
    for variable, our, their in zip(variables, ours, theirs, strict=True):
        their = tf.convert_to_tensor(their)
        scale = float(tf.reduce_max(tf.abs(their)))
        np.testing.assert_allclose(
            our, their, rtol=1e-5, atol=1e-5 * scale, err_msg=variable.name
        )


def test_bfloat16_is_close_and_its_loss_is_float32(gpt2, batch):
    loss, _ = forward.summed_loss(gpt2, *batch, dtype=tf.bfloat16)
    exact, _ = forward.summed_loss(gpt2, *batch)
    assert loss.dtype == tf.float32
    assert float(loss) == pytest.approx(float(exact), rel=0.02)
    assert float(loss) != float(exact)


def test_dropout_follows_its_seed(gpt2, batch):
    def loss(seed):
        return float(forward.summed_loss(gpt2, *batch, dropout=0.3, seed=seed)[0])

    assert loss([1, 2]) == loss([1, 2])
    assert loss([1, 2]) != loss([1, 3])
    exact = float(forward.summed_loss(gpt2, *batch)[0])
    assert loss([1, 2]) != exact


def test_dropout_keeps_the_expected_value(gpt2):
    """Each site draws its own noise, and what is kept is scaled up."""
    tokens = tf.zeros([64, 12], tf.int32)
    seed = [0, 0]
    dropped = forward.hidden_states(gpt2, tokens, dropout=0.1, seed=seed)
    exact = forward.hidden_states(gpt2, tokens)
    error = tf.reduce_mean(dropped, 0) - exact[0]
    assert float(tf.reduce_mean(tf.abs(error))) < 0.2
    # Rows of the same tokens got different noise.
    assert float(tf.reduce_max(tf.abs(dropped[0] - dropped[1]))) > 0.1
