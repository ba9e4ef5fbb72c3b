"""XLNet against PyTorch: the same weights and masks, and what no prediction may see."""


import numpy as np
import pytest
import tensorflow as tf

from trainer.models import registry
from trainer.models.architecture import Options
from trainer.models.layers.dropout import NO_DROPOUT, Dropout

XLNET = registry.get("xlnet")
SHAPE = {"vocab_size": 61, "d_model": 24, "n_layer": 3, "n_head": 2, "d_inner": 40}
TOKENS = np.random.default_rng(0).integers(0, 61, (3, 14))


@pytest.fixture(scope="module")
def judge():
    """PyTorch's model, every weight of which is random, biases and norms included."""
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    from transformers import XLNetConfig, XLNetLMHeadModel

    torch.manual_seed(0)
    config = XLNetConfig(**SHAPE, dropout=0.0, initializer_range=0.3)
    model = XLNetLMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name or "layer_norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="module")
def folder(judge, tmp_path_factory):
    path = tmp_path_factory.mktemp("xlnet")
    judge.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return XLNET.load(str(folder))


def draw_masks():
    """Random masks; in the last row one target does not count."""
    generator = np.random.default_rng(1)
    unseen = generator.random((3, 14, 14)) < 0.5
    targets = np.zeros((3, 4, 14), bool)
    for row in range(3):
        for number, place in enumerate(generator.choice(14, 4, replace=False)):
            unseen[row, place, place] = targets[row, number, place] = True
            unseen[row, place, (place + 1) % 14] = False  # it sees something
    targets[2, 3] = False
    return unseen, targets


def logits(model, unseen, targets, options=None, dropout=NO_DROPOUT):
    states = XLNET.target_states(
        model,
        tf.constant(TOKENS, tf.int32),
        tf.constant(unseen),
        tf.constant(targets),
        options or Options(),
        dropout,
    )
    states = tf.cast(states, tf.float32)
    return tf.matmul(states, XLNET.output_table(model), transpose_b=True)


def judged(judge, unseen, targets):
    import torch

    labels = np.einsum("bpt,bt->bp", targets, TOKENS)
    labels[~targets.any(axis=2)] = -100
    return judge(
        torch.tensor(TOKENS),
        perm_mask=torch.tensor(unseen).float(),
        target_mapping=torch.tensor(targets).float(),
        labels=torch.tensor(labels),
    )


def summed_loss(model, unseen, targets, options=None):
    labels = np.einsum("bpt,bt->bp", targets, TOKENS)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels, logits(model, unseen, targets, options)
    )
    counts = targets.any(axis=2)
    return tf.reduce_sum(losses * counts) / counts.sum()


@pytest.mark.parametrize("remat", ["none", "attention", "block"])
def test_logits_loss_and_gradients_are_those_of_pytorch(model, judge, remat):
    unseen, targets = draw_masks()
    judge.zero_grad()
    expected = judged(judge, unseen, targets)
    expected.loss.backward()
    options = Options(remat=remat)
    found = logits(model, unseen, targets, options)
    np.testing.assert_allclose(found, expected.logits.detach(), atol=1e-4)
    with tf.GradientTape() as tape:
        loss = summed_loss(model, unseen, targets, options)
    assert float(loss) == pytest.approx(expected.loss.item(), abs=1e-5)
    theirs = dict(judge.named_parameters())
    variables = {n: v for n, v in model.by_name.items() if v.trainable}
    for (name, variable), gradient in zip(
        variables.items(), tape.gradient(loss, list(variables.values())), strict=True
    ):
        gradient = np.reshape(tf.convert_to_tensor(gradient), theirs[name].shape)
        scale = float(theirs[name].grad.abs().max())
        np.testing.assert_allclose(
            gradient, theirs[name].grad, atol=1e-4 * scale + 1e-7, err_msg=name
        )
        assert variable.shape.rank <= 2


def test_the_content_stream_is_that_of_pytorch(model, judge):
    torch = pytest.importorskip("torch")
    hidden = XLNET.hidden_states(model, tf.constant(TOKENS, tf.int32))
    found = tf.matmul(hidden, XLNET.output_table(model), transpose_b=True)
    with torch.no_grad():
        expected = judge(torch.tensor(TOKENS)).logits
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_bfloat16_is_float32_rounded_and_xla_computes_the_same(model):
    unseen, targets = draw_masks()
    exact = logits(model, unseen, targets)
    rounded = logits(model, unseen, targets, Options(precision="bfloat16"))
    assert 1e-3 < np.abs(exact - rounded).max() < 0.15 * np.abs(exact).max()

    dropout = Dropout(0.3, tf.constant([1, 2, 3], tf.uint32))
    values = []
    for compiled in (False, True):
        options = Options(remat="block", compiled=compiled)

        @tf.function(jit_compile=compiled)
        def gradient(options=options):
            drop = Dropout(0.3, dropout.keys, options.compiled)
            with tf.GradientTape() as tape:
                value = tf.reduce_sum(
                    logits(model, unseen, targets, options, drop) ** 2
                )
            return tape.gradient(value, model.by_name["transformer.mask_emb"])

        values.append(gradient())
    scale = np.abs(values[0]).max()
    np.testing.assert_allclose(values[0], values[1], atol=1e-4 * scale)
    assert not np.allclose(exact, logits(model, unseen, targets, None, dropout))
