"""The training forward against transformers' own."""

import re

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import VOCABULARY_SIZE, summed_loss, tiny_model
from trainer.models.architecture import Options
from trainer.models.gpt2 import forward
from trainer.models.gpt2.architecture import ARCHITECTURE as GPT2
from trainer.models.layers import attention, cross_entropy
from trainer.models.layers.dropout import NO_DROPOUT, Dropout
from trainer.models.layers.noise import row_keys
from trainer.tasks import causal_lm

LENGTH = 8
NUM_LABELS = (LENGTH - 1) + (5 - 1)


@pytest.fixture(scope="module")
def gpt2():
    return tiny_model()


@pytest.fixture(scope="module")
def batch():
    tokens = np.random.default_rng(1).integers(0, VOCABULARY_SIZE, (3, LENGTH))
    return tf.constant(tokens, tf.int32), tf.constant([LENGTH, 5, 0])


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


# Blocks of queries smaller than the sequence, and one that is not full.
@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    patch = pytest.MonkeyPatch()
    patch.setattr(forward, "QUERY_BLOCK", 5)
    patch.setattr(cross_entropy, "CHUNK_TOKENS", 8)
    yield
    patch.undo()


WAYS = [
    pytest.param(
        Options(remat=remat, compiled=compiled, on_cpu=on_cpu), id=f"{remat}-{name}"
    )
    for name, compiled, on_cpu in (
        ("plain", False, False),
        ("compiled", True, False),
        ("cpu", False, True),
    )
    for remat in ("none", "attention", "block")
]


def loss_and_gradients(gpt2, batch, options, dropout=NO_DROPOUT):
    @tf.function(jit_compile=options.compiled or None)
    def compute(tokens, length):
        with tf.GradientTape() as tape:
            loss, count = summed_loss(gpt2, tokens, length, options, dropout)
        return loss, count, tape.gradient(loss, gpt2.trainable_variables)

    return compute(*batch)


def transformers_gradients(gpt2, batch):
    """Of the loss over real tokens, by transformers' forward and TensorFlow's."""
    tokens, length = batch
    mask = tf.cast(tf.range(LENGTH) < length[:, None], tf.int32)
    with tf.GradientTape() as tape:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            tokens[:, 1:], gpt2(tokens, attention_mask=mask).logits[:, :-1]
        )
        loss = tf.reduce_sum(losses * tf.cast(mask[:, 1:], tf.float32))
    return tape.gradient(loss, gpt2.trainable_variables)


def assert_close(variables, ours, theirs, tolerance):
    for variable, our, their in zip(variables, ours, theirs, strict=True):
        their = tf.convert_to_tensor(their)
        scale = float(tf.reduce_max(tf.abs(their)))
        np.testing.assert_allclose(
            our, their, rtol=0, atol=tolerance * scale, err_msg=variable.name
        )


@pytest.mark.parametrize("remat", ["none", "attention", "block"])
def test_masks_are_no_constants_of_the_compiled_program(gpt2, batch, remat):
    options = Options(remat=remat, compiled=True)

    @tf.function(jit_compile=True)
    def compute(tokens, length):
        with tf.GradientTape() as tape:
            loss, _ = summed_loss(gpt2, tokens, length, options)
        return tape.gradient(loss, gpt2.trainable_variables)

    program = compute.experimental_get_compiler_ir(*batch)(stage="hlo")
    constants = re.findall(r"\w+\[([\d,]*)\]\S* constant\(", program)
    assert constants
    assert not [shape for shape in constants if "," in shape and shape != "1,1"]


# With dropout, all of them are compared below.
@pytest.mark.parametrize("options", [WAYS[0], *WAYS[4:]])
def test_loss_and_gradients_equal_transformers(gpt2, batch, options):
    loss, count, gradients = loss_and_gradients(gpt2, batch, options)
    expected, expected_count = transformers_loss(gpt2, *batch)
    assert int(count) == expected_count == NUM_LABELS
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    theirs = transformers_gradients(gpt2, batch)
    assert_close(gpt2.trainable_variables, gradients, theirs, 1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_token_losses_are_those_that_are_summed(gpt2, batch, compiled):
    @tf.function(jit_compile=compiled or None)
    def token_losses(tokens, length):
        batch = {"tokens": tokens, "length": length, "first": tf.ones_like(length)}
        return causal_lm.token_losses(GPT2, gpt2, batch)

    losses, weights, _ = token_losses(*batch)
    assert losses.shape == weights.shape == (3, LENGTH)
    assert float(tf.reduce_sum(weights)) == NUM_LABELS
    expected, _ = transformers_loss(gpt2, *batch)
    assert float(tf.reduce_sum(losses * weights)) == pytest.approx(expected, rel=1e-5)


def test_every_policy_gives_the_same_with_dropout(gpt2, batch):
    """The second computation must draw the noise of the first."""
    keys = row_keys(3, tf.constant(7), tf.range(3))
    results = [
        loss_and_gradients(
            gpt2, batch, options, Dropout(0.3, keys, options.compiled, options.on_cpu)
        )
        for options in (way.values[0] for way in WAYS)
    ]
    exact, *_ = loss_and_gradients(gpt2, batch, Options())
    assert abs(float(results[0][0] - exact)) > 0.01
    for loss, _, gradients in results[1:]:
        assert float(loss) == pytest.approx(float(results[0][0]), rel=1e-6)
        assert_close(gpt2.trainable_variables, gradients, results[0][2], 1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    ("compiled", "layout"),
    [
        *((True, attention.TOKENS_LAST), (False, attention.TOKENS_LAST)),
        (False, attention.ROWS),
    ],
)
def test_attention_is_a_softmax_with_tensorflows_gradient(
    precision, keep, compiled, layout
):
    """One sequence, an odd head size, blocks that are not full, and dropout."""
    shape, keys = [1, 2, 5, 11], row_keys(0, tf.constant(3), tf.range(1))
    dropout = Dropout(0.3, keys, compiled, layout.fused)
    values = [tf.random.stateless_normal(shape, [1, index]) for index in range(4)]
    values = [tf.cast(v, precision) for v in values]

    def plain(query, key, value):
        scores = tf.einsum("bhdq,bhdk->bhqk", query, key)
        visible = tf.range(11)[:, None] >= tf.range(11)[None]
        weights = tf.nn.softmax(tf.where(visible, scores * 5**-0.5, -1e9))
        noise = tf.stop_gradient(Dropout(0.3, keys)(tf.ones_like(weights), 0))
        return tf.einsum("bhqk,bhdk->bhdq", weights * noise, value)

    def turned(x):
        return tf.transpose(x, [0, 1, 3, 2]) if layout == attention.ROWS else x

    def ours(*inputs):
        mixed = attention.attention(
            *map(turned, inputs),
            drop=lambda weights, first: dropout(
                weights, 0, whole=(2, 11, 11), begin=(0, first, 0)
            ),
            keep=keep,
            compiled=compiled,
            query_block=5,
            layout=layout,
        )
        return turned(mixed)

    def results(function, inputs, upstream):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            output = function(*inputs)
        return [output, *tape.gradient(output, inputs, upstream)]

    exact = [tf.cast(value, tf.float32) for value in values]
    expected = results(plain, exact[:3], exact[3])
    found = tf.function(results, jit_compile=compiled or None)(
        ours, values[:3], values[3]
    )
    tolerance = 1e-5 if precision == "float32" else 0.04
    for our, their in zip(found, expected, strict=True):
        scale = float(tf.reduce_max(tf.abs(their)))
        np.testing.assert_allclose(
            tf.cast(our, tf.float32), their, rtol=0, atol=tolerance * scale
        )


def test_dropout_has_the_gradient_of_what_it_did(gpt2, batch):
    """A finite difference along the gradient, with the noise held."""
    dropout = Dropout(0.3, row_keys(3, tf.constant(7), tf.range(3)))
    loss, _, gradients = loss_and_gradients(gpt2, batch, Options(), dropout)
    variables = gpt2.trainable_variables
    before = [v.numpy() for v in variables]
    step = 1e-3 / float(tf.linalg.global_norm(gradients))
    for variable, gradient in zip(variables, gradients, strict=True):
        variable.assign_add(step * gradient)
    after, *_ = loss_and_gradients(gpt2, batch, Options(), dropout)
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    expected = step * float(tf.linalg.global_norm(gradients)) ** 2
    assert float(after - loss) == pytest.approx(expected, rel=0.05)


def test_what_padding_holds_changes_nothing(gpt2, batch):
    tokens, length = batch
    other = tf.where(tf.range(LENGTH) < length[:, None], tokens, 5)
    loss, _ = summed_loss(gpt2, tokens, length)
    other_loss, _ = summed_loss(gpt2, other, length)
    assert float(loss) == pytest.approx(float(other_loss), rel=1e-6)


def test_bfloat16_is_close_and_its_loss_is_float32(gpt2, batch):
    loss, _ = summed_loss(gpt2, *batch, Options("bfloat16"))
    exact, _ = summed_loss(gpt2, *batch)
    assert loss.dtype == tf.float32
    assert float(loss) == pytest.approx(float(exact), rel=0.02)
    assert float(loss) != float(exact)
