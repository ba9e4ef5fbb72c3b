"""Classification: the loss and logits, against PyTorch; its figures; bad data."""

import dataclasses
import types

import numpy as np
import pytest
import tensorflow as tf

from configs.errors import DataError, UserError
from configs.schema import LoraConfig, TrainingConfig
from tests.conftest import tiny_config, tiny_model
from tests.trainer.planning.test_hardware import MANIFEST
from tfrecords import reader, schema
from tfrecords.manifest import Split
from trainer.models import classifier, lora, variables
from trainer.models.algpt2.architecture import ARCHITECTURE as ALGPT2
from trainer.models.architecture import DEFAULT_OPTIONS
from trainer.models.gpt2.architecture import ARCHITECTURE as GPT2
from trainer.tasks import classification
from trainer.tasks.create import assemble, trained_variables
from trainer.tasks.step import TrainingStep

LABELS = ("bad", "good", "so-so")
LENGTHS = (3, 9, 1, 6)
T = 9


@pytest.fixture(scope="module")
def model():
    made = classifier.add_head(GPT2, tiny_model(), LABELS, seed=3)
    made.config.eos_token_id = 0
    (head,) = classifier.head_of(made)
    head.assign(tf.random.stateless_normal(head.shape, [1, 2]))
    return made


@pytest.fixture(scope="module")
def rows():
    """Texts that hold no end token, but the third, which is nothing else."""
    return np.random.default_rng(0).integers(1, 97, [len(LENGTHS), T])


def batch_of(rows, lengths=LENGTHS, pad=0, labels=(0, 1, 2, 1)):
    tokens = np.where(np.arange(T) < np.array(lengths)[:, None], rows, pad)
    features = {"tokens": tokens, "length": lengths, "label": labels}
    return {name: tf.constant(value, tf.int32) for name, value in features.items()}


def logits(model, batch):
    return classification.logits(GPT2, model, batch).numpy()


def in_pytorch(model):
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    from transformers import GPT2Config, GPT2ForSequenceClassification

    judge = GPT2ForSequenceClassification(
        GPT2Config.from_dict({**model.config.to_dict(), "pad_token_id": 0})
    ).eval()
    values = {variables.name_of(v): torch.tensor(v.numpy()) for v in model.variables}
    values["score.weight"] = values["score.weight"].T
    state = {
        name: values[name].reshape(old.shape)
        for name, old in judge.state_dict().items()
    }
    judge.load_state_dict(state)
    return torch, judge


@pytest.mark.parametrize("side", ["left", "right"])
def test_pytorch_has_the_same_logits_whatever_the_side_of_the_padding(
    model, rows, side
):
    """The dataset's reader turns the rows; PyTorch needs mask and positions."""
    expected = logits(model, batch_of(rows))
    stored = [
        np.roll(np.where(np.arange(T) < n, row, 0), (T - n) * (side == "left"))
        for row, n in zip(rows, LENGTHS, strict=True)
    ]
    manifest = types.SimpleNamespace(
        sequence_length=T,
        dtype=np.dtype("<u2"),
        labelled=False,
        masked=False,
        padding_side=side,
        vocabulary_size=97,
    )
    records = [
        schema.serialize(row.astype("<u2"), n)
        for row, n in zip(stored, LENGTHS, strict=True)
    ]
    read = reader.parse(tf.constant(records), manifest)
    np.testing.assert_allclose(logits(model, read), expected, atol=1e-5)
    torch, judge = in_pytorch(model)
    tokens = torch.tensor(np.stack(stored))
    mask = (tokens != 0).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        theirs = judge(tokens, attention_mask=mask, position_ids=positions).logits
    np.testing.assert_allclose(theirs.numpy(), expected, atol=1e-5)


def test_the_length_says_where_a_text_ends(model, rows):
    """Not the padding, which the text may hold; nor the end token behind it."""
    expected = logits(model, batch_of(rows))
    for pad in (0, 17):
        np.testing.assert_allclose(
            logits(model, batch_of(rows, pad=pad)), expected, atol=1e-5
        )
    ends_in_padding = rows.copy()
    ends_in_padding[:, 2] = 17
    whole = logits(model, batch_of(ends_in_padding, (3,) * 4, pad=17))
    alone = ends_in_padding[:, :3]
    short = {"tokens": tf.constant(alone, tf.int32), "length": tf.constant([3] * 4)}
    np.testing.assert_allclose(whole, logits(model, short), atol=1e-5)
    with_end = np.where(np.arange(T) < np.array(LENGTHS)[:, None], rows, 0)
    lengths = [min(n + 1, T) for n in LENGTHS]
    behind = logits(model, batch_of(with_end, lengths, pad=5))
    np.testing.assert_allclose(behind, expected, atol=1e-5)


@pytest.mark.parametrize("class_weights", [(), (0.5, 2.0, 1.25)])
def test_the_loss_is_that_of_pytorch(model, rows, class_weights):
    batch = batch_of(rows)
    loss, weight = classification.summed_loss(
        GPT2, model, batch, class_weights=class_weights
    )
    torch, _ = in_pytorch(model)
    judge = torch.nn.CrossEntropyLoss(
        torch.tensor(class_weights) if class_weights else None
    )
    values = torch.tensor(logits(model, batch)), torch.tensor(batch["label"].numpy())
    expected = judge(values[0], values[1].long()).item()
    np.testing.assert_allclose(loss / weight, expected, rtol=1e-5)


def test_a_row_without_text_counts_nothing(model, rows):
    """Of these, evaluation fills its last batch."""
    batch = batch_of(rows, (3, 0, 1, 0))
    sums = classification.evaluation_sums(GPT2, model, batch, DEFAULT_OPTIONS)
    assert sums["confusion"].numpy().sum() == 2
    two = {name: value[::2] for name, value in batch.items()}
    expected, weight = classification.summed_loss(GPT2, model, two)
    assert weight == 2
    np.testing.assert_allclose(sums["loss_sum"], expected, rtol=1e-5)


def test_accumulation_changes_nothing(model, rows):
    """With class weights, whose sum differs from microbatch to microbatch."""
    batch = batch_of(rows)
    task = dataclasses.replace(
        classification.TASK,
        summed_loss=lambda *arguments: classification.summed_loss(
            *arguments, class_weights=(0.5, 2.0, 1.25)
        ),
    )
    whole, halves = (
        TrainingStep(model, GPT2, task, accumulation_steps=num).local_gradients(
            batch, tf.constant([1, 2, 3, 4], tf.uint32)
        )
        for num in (1, 2)
    )
    for one, other in zip(tf.nest.flatten(whole), tf.nest.flatten(halves), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert len(whole[2]) == len(model.trainable_variables)


def test_figures_by_hand():
    """Rows are true. F1: 2*3/(4+5), 2*1/(4+2), and 0 of what is not there."""
    sums = {"loss_sum": 4.0, "confusion": np.array([[3.0, 1, 0], [2, 1, 0], [0] * 3])}
    found = classification.split_figures(sums, Split(truncated_documents=2))
    assert found == {
        "texts": 7,
        "truncated_texts": 2,
        "loss": pytest.approx(4 / 7),
        "accuracy": pytest.approx(4 / 7),
        "macro_f1": pytest.approx((6 / 9 + 2 / 5) / 3),
        "confusion": [[3, 1, 0], [2, 1, 0], [0, 0, 0]],
    }
    with pytest.raises(DataError, match="must hold a labelled text"):
        classification.figures({"loss_sum": 0.0, "confusion": np.zeros([2, 2])})


def manifest_of(train, validation=(), mode="labelled", **config):
    splits = {"train": Split(labels=dict(train))}
    if validation:
        splits["validation"] = Split(labels=dict(validation))
    names = tuple(sorted(dict(train) | dict(validation)))
    return dataclasses.replace(
        MANIFEST, mode=mode, splits=splits, config=config, label_names=names
    )


GOOD = {"bad": 30, "good": 10}


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (manifest_of(GOOD, mode="document"), "one of mode document"),
        (manifest_of({"bad": 5}), "two labels or more. Received: bad"),
        (manifest_of({}), "two labels or more. Received: none"),
        (
            manifest_of(GOOD, {"good": 3, "awful": 2}),
            "Received: 2 texts of the validation split with awful",
        ),
        (manifest_of(GOOD, start_token="<s>"), "Received: <s>"),
        (manifest_of(GOOD, end_token="</s>"), "Received: </s>"),
    ],
)
def test_data_that_do_not_fit_are_one_message(manifest, message):
    with pytest.raises(DataError, match=message):
        classification.TASK.resolve(TrainingConfig(), manifest)


def test_rare_labels_weigh_more_if_asked_for(model, rows):
    manifest = manifest_of(GOOD, {"good": 3})
    assert (
        classification.TASK.resolve(TrainingConfig(), manifest) is classification.TASK
    )
    task = classification.TASK.resolve(
        TrainingConfig(class_weights="balanced"), manifest
    )
    batch = batch_of(rows, labels=(0, 0, 0, 1))
    _, weight = task.summed_loss(GPT2, model, batch)
    np.testing.assert_allclose(weight, 3 * 40 / 60 + 40 / 20, rtol=1e-6)


def test_an_architecture_without_a_head_is_refused():
    with pytest.raises(UserError, match=r"such as gpt2\. Received: .*=algpt2"):
        classifier.configure(ALGPT2, tiny_model().config, LABELS)


def test_a_head_is_added_once(model):
    assert classifier.add_head(GPT2, model, LABELS, seed=0) is model
    other = classifier.add_head(GPT2, model, LABELS[:2], seed=0)
    assert classifier.labels_of(other.config) == LABELS[:2]
    assert classifier.labels_of(tiny_model().config) == ()
    for mine, theirs in zip(
        other.transformer.variables, model.transformer.variables, strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(UserError, match="a classifier of bad, good, so-so"):
        classifier.check_is_none(model, "folder")


def test_lora_trains_the_head_as_well():
    base = classifier.add_head(GPT2, tiny_model(), LABELS, seed=3)
    lora.attach(base, LoraConfig(rank=2), 0)
    config = tiny_config(task="classification")
    names = [variables.name_of(v) for v in trained_variables(base, config.training)]
    assert [name.rpartition("/")[2].rpartition(".")[2] for name in names] == [
        *(["lora_a", "lora_b"] * 2),
        "weight",
    ]
    assert names[-1] == "score.weight"
    step = assemble(base, GPT2, classification.TASK, config, num_steps=3)
    assert step.trained[-1] is classifier.head_of(base)[0]


def test_the_head_alone_can_be_trained(model):
    config = tiny_config(task="classification", trainable="score")
    assert trained_variables(model, config.training) == classifier.head_of(model)
