"""Attention and positions that stay in a document: each is as if it stood alone.

The judges are the same network on each document alone, and PyTorch's GPT-2.
"""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

from configs.errors import DataError
from configs.schema import Config, DataConfig, LoraConfig, ModelConfig
from tests.conftest import VOCABULARY_SIZE, tiny_model, training_step
from tests.trainer.models.test_weights import pytorch_folder
from trainer.models import lora, registry
from trainer.models.architecture import Options
from trainer.models.gpt2 import forward
from trainer.models.gpt2.architecture import ARCHITECTURE as GPT2
from trainer.models.layers import cross_entropy
from trainer.models.layers.documents import find_documents
from trainer.models.layers.dropout import Dropout
from trainer.models.layers.noise import row_keys
from trainer.tasks import causal_lm
from trainer.tasks.create import end_token

END, LENGTH = 3, 16
# Tokens of the documents of each record. The first may have begun in the record before,
# the last may go on in the next, and one is an end token alone.
DOCUMENTS = ((5, 1, 6, 4), (16,), (1, 2, 13))
WAYS = [
    pytest.param(
        Options(remat=remat, compiled=compiled, on_cpu=on_cpu, end_token=END),
        id=f"{remat}-{name}",
        marks=pytest.mark.slow if compiled or remat != "none" else (),
    )
    for remat in ("none", "attention", "block")
    for compiled, on_cpu, name in (
        (False, False, "plain"),
        (True, False, "compiled"),
        (False, True, "cpu"),
    )
]


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """Blocks of queries that begin and end within documents; one is not full."""
    patch = pytest.MonkeyPatch()
    patch.setattr(forward, "QUERY_BLOCK", 5)
    yield
    patch.undo()


@functools.cache
def records():
    values = np.random.default_rng(1).integers(0, VOCABULARY_SIZE, (3, LENGTH))
    values[values == END] += 1
    for row, sizes in zip(values, DOCUMENTS, strict=True):
        row[np.cumsum(sizes)[:-1] - 1] = END
    return tf.constant(values, tf.int32)


@functools.cache
def gpt2():
    return GPT2, tiny_model()


@functools.cache
def gpt2_with_lora():
    model = tiny_model()
    lora.attach(model, LoraConfig(3, targets="c_attn,c_proj,c_fc"), seed=5)
    for index, variable in enumerate(lora.adapters(model)):
        noise = tf.random.stateless_normal(variable.shape, [8, index], stddev=0.1)
        variable.assign_add(noise)
    return GPT2, model


@functools.cache
def algpt2():
    architecture = registry.get("algpt2")
    shape = ModelConfig(
        n_layer=2, n_head=2, n_embd=16, n_positions=16, embedding_size=8
    )
    model = architecture.build(architecture.configure(shape, VOCABULARY_SIZE))
    for index, variable in enumerate(model.variables):
        noise = tf.random.stateless_normal(variable.shape, [7, index], stddev=0.1)
        variable.assign(noise)
    return architecture, model


def hidden_of_each_alone(architecture, model, tokens):
    """The hidden states of each document alone, put back in their places."""
    rows = []
    for row, sizes in zip(tokens, DOCUMENTS, strict=True):
        parts = [
            architecture.hidden_states(model, part[None], Options())
            for part in tf.split(row, sizes)
        ]
        rows.append(tf.concat(parts, axis=1))
    return tf.concat(rows, axis=0)


def logits(architecture, model, hidden):
    table = architecture.output_table(model)
    return tf.matmul(tf.cast(hidden, tf.float32), table, transpose_b=True)


def batch_of(tokens):
    return {"tokens": tokens, "length": tf.constant([LENGTH, LENGTH, 12])}


def loss_and_gradients(architecture, model, tokens, options):
    variables = lora.trained(model) or model.trainable_variables

    @tf.function(jit_compile=options.compiled or None, autograph=False)
    def compute(tokens):
        with tf.GradientTape() as tape:
            loss, count = causal_lm.summed_loss(
                architecture, model, batch_of(tokens), options
            )
        return loss, count, tape.gradient(loss, variables)

    return compute(tokens)


@functools.cache
def expected_of(make):
    """Loss and gradients of the documents, each computed alone."""
    architecture, model = make()
    variables = lora.trained(model) or model.trainable_variables
    with tf.GradientTape() as tape:
        hidden = hidden_of_each_alone(architecture, model, records())
        labels, weights = causal_lm._shift(batch_of(records()))
        table = architecture.output_table(model)
        loss = cross_entropy.summed_loss(hidden, table, labels, weights, compiled=False)
    return loss, hidden, tape.gradient(loss, variables)


def assert_as_alone(make, options, tolerance):
    architecture, model = make()
    loss, hidden, gradients = expected_of(make)
    found = architecture.hidden_states(model, records(), options)
    np.testing.assert_allclose(
        logits(architecture, model, found),
        logits(architecture, model, hidden),
        rtol=0,
        atol=tolerance,
    )
    our_loss, count, our_gradients = loss_and_gradients(
        architecture, model, records(), options
    )
    assert int(count) == 2 * (LENGTH - 1) + 11  # the same tokens bear loss
    assert float(our_loss) == pytest.approx(float(loss), rel=tolerance)
    for our, their in zip(our_gradients, gradients, strict=True):
        their = tf.convert_to_tensor(their)
        scale = float(tf.reduce_max(tf.abs(their)))
        np.testing.assert_allclose(our, their, rtol=0, atol=tolerance * scale)


def test_where_documents_begin():
    tokens = tf.constant([[8, END, 7, 7, END, END, 9], [END, 1, 1, 1, 1, 1, END]])
    expected = [[0, 0, 2, 2, 2, 5, 6], [0, 1, 1, 1, 1, 1, 1]]
    assert find_documents(tokens, END).starts.numpy().tolist() == expected
    assert find_documents(tokens, None) is None


@pytest.mark.parametrize("options", WAYS)
def test_documents_are_as_if_alone(options):
    assert_as_alone(gpt2, options, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("make", [algpt2, gpt2_with_lora])
def test_documents_of_other_models_are_as_if_alone(make):
    assert_as_alone(make, Options(remat="attention", end_token=END), 1e-5)


@pytest.mark.slow
def test_documents_in_bfloat16_are_as_if_alone():
    options = Options("bfloat16", "block", compiled=True, end_token=END)
    assert_as_alone(gpt2, options, 0.04)


def test_pytorch_with_a_mask_and_positions_computes_the_same(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    from transformers import GPT2LMHeadModel

    model = gpt2()[1]
    judge = GPT2LMHeadModel.from_pretrained(
        pytorch_folder(tmp_path / "hf", model), attn_implementation="eager"
    )
    number = np.array([np.repeat(range(len(sizes)), sizes) for sizes in DOCUMENTS])
    positions = [np.concatenate([np.arange(n) for n in sizes]) for sizes in DOCUMENTS]
    visible = (number[:, :, None] == number[:, None]) & np.tri(LENGTH, dtype=bool)
    inputs = torch.tensor(records().numpy()).long()
    judge.eval()
    theirs = judge(
        inputs,
        attention_mask=torch.tensor(np.where(visible, 0, -1e9), dtype=torch.float32)[
            :, None
        ],
        position_ids=torch.tensor(np.array(positions)),
        labels=inputs,
    )
    found = GPT2.hidden_states(model, records(), Options(end_token=END))
    np.testing.assert_allclose(
        logits(GPT2, model, found), theirs.logits.detach().numpy(), atol=1e-5
    )
    whole = {"tokens": records(), "length": tf.fill([3], LENGTH)}
    loss, count = causal_lm.summed_loss(GPT2, model, whole, Options(end_token=END))
    assert float(loss / count) == pytest.approx(theirs.loss.item(), rel=1e-5)


@pytest.mark.parametrize("make", [gpt2, algpt2])
def test_no_token_changes_another_document(make):
    """It does change what comes later in its own."""
    architecture, model = make()
    row, options = records()[0], Options(end_token=END)
    places = [place for place in range(LENGTH) if row[place] != END]
    other = tf.where(row == END + 1, END + 2, END + 1)
    changed = tf.stack(
        [row, *(tf.where(tf.range(LENGTH) == place, other, row) for place in places)]
    )
    hidden = architecture.hidden_states(model, changed, options).numpy()
    differs = np.abs(hidden[1:] - hidden[0]).max(2) > 1e-5
    number = np.repeat(range(4), DOCUMENTS[0])
    expected = (number == number[places, None]) & (
        np.arange(LENGTH) >= np.array(places)[:, None]
    )
    np.testing.assert_array_equal(differs, expected)


def test_a_record_without_an_end_is_one_text():
    model = gpt2()[1]
    tokens = tf.where(records() == END, END + 1, records())
    found = GPT2.hidden_states(model, tokens, Options(end_token=END))
    np.testing.assert_array_equal(found, GPT2.hidden_states(model, tokens, Options()))


def test_every_policy_draws_the_same_dropout():
    model, keys = gpt2()[1], row_keys(3, tf.constant(7), tf.range(3))
    first, *others = [
        GPT2.hidden_states(model, records(), way.values[0], Dropout(0.3, keys))
        for way in WAYS
        if not way.values[0].compiled
    ]
    for hidden in others:
        np.testing.assert_allclose(hidden, first, atol=1e-5)


@pytest.mark.slow
def test_accumulated_microbatches_are_one_batch():
    model, keys = gpt2()[1], row_keys(0, tf.constant(0), tf.range(4))
    rows = tf.gather(records(), [0, 1, 2, 0])
    batch = {"tokens": rows, "length": tf.fill([4], LENGTH)}
    (loss, weight, gradients), (our_loss, our_weight, ours) = (
        training_step(
            model, accumulation_steps=num, options=Options(end_token=END)
        )._local_gradients(batch, keys)
        for num in (1, 4)
    )
    assert float(our_loss) == pytest.approx(float(loss), rel=1e-6)
    assert float(our_weight) == float(weight)
    for our, their in zip(ours, gradients, strict=True):
        np.testing.assert_allclose(our, their, rtol=0, atol=1e-4)


def test_a_dataset_without_separate_documents_is_refused(dataset):
    manifest = dataset[1]
    config = Config(data=DataConfig(attention="document"))
    assert end_token(Config(), manifest) is None
    assert end_token(config, manifest) == manifest.end_of_text_id
    for changed, received in (
        ({"mode": "document"}, "mode document"),
        ({"config": {"end_token": ""}}, "end token ''"),
    ):
        other = dataclasses.replace(manifest, **changed)
        assert end_token(Config(), other) is None
        with pytest.raises(DataError, match=f"needs packed records.*{received}"):
            end_token(config, other)
