"""Perplexity: summed over all tokens, whatever the batches and replicas."""

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf

from configs.errors import DataError
from tests.conftest import (
    VOCABULARY_SIZE,
    tiny_model,
    training_step,
    write_dataset,
)
from tfrecords.windows import Windows
from trainer.evaluation.scoring import Scorer
from trainer.models.gpt2 import weights
from trainer.runtime.strategy import mirror_cpu
from trainer.tasks import causal_lm


def score(dataset, *, num_replicas=1, batch_size=4, gpt2=tiny_model):
    folder, manifest = dataset
    strategy = mirror_cpu(num_replicas)
    with strategy.scope():
        step = training_step(gpt2())
    cut = {"split": "validation", "context_length": 8, "stride": 8}
    windows = Windows(str(folder), manifest, **cut)
    return Scorer(step, strategy, windows, batch_size=batch_size)()


def test_equals_transformers_record_by_record(dataset, tokens):
    """83 tokens: ten records of 8 and a tail of 3, which is not dropped."""
    gpt2 = tiny_model()
    total = count = 0
    for start in range(0, 83, 8):
        row = tf.constant(tokens[:83][start : start + 8][None], tf.int32)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            row[:, 1:], gpt2(row).logits[:, :-1]
        )
        total += float(tf.reduce_sum(losses))
        count += losses.shape[1]
    sums = score(dataset)
    assert sums["token_count"] == count == 10 * 7 + 2
    assert sums["loss_sum"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(("num_replicas", "batch_size"), [(1, 1), (1, 11), (2, 3)])
def test_batches_and_replicas_change_nothing(dataset, num_replicas, batch_size):
    expected = score(dataset)
    sums = score(dataset, num_replicas=num_replicas, batch_size=batch_size)
    assert sums["token_count"] == expected["token_count"]
    assert sums["loss_sum"] == pytest.approx(expected["loss_sum"], rel=1e-6)


def test_the_order_of_the_records_changes_nothing(dataset, tokens, tmp_path):
    """Each record is a text of its own where windows are records."""
    rows = tokens[:80].reshape(10, 8)[np.random.default_rng(1).permutation(10)]
    turned = write_dataset(
        tmp_path / "turned",
        train_tokens=tokens,
        validation_tokens=np.concatenate([rows.ravel(), tokens[80:83]]),
        sequence_length=8,
    )
    expected, sums = score(dataset), score((tmp_path / "turned", turned))
    assert sums["token_count"] == expected["token_count"]
    assert sums["loss_sum"] == pytest.approx(expected["loss_sum"], rel=1e-6)


def test_an_untrained_model_knows_nothing(dataset):
    def untrained():
        gpt2 = tiny_model()
        weights.initialize(gpt2, seed=1)
        for variable in gpt2.trainable_variables:
            if variable.name.endswith(("gamma:0", "beta:0", "bias:0")):
                variable.assign(
                    tf.ones_like(variable)
                    if "gamma" in variable.name
                    else tf.zeros_like(variable)
                )
        return gpt2

    sums = score(dataset, gpt2=untrained)
    assert causal_lm.figures(sums)["loss"] == pytest.approx(
        math.log(VOCABULARY_SIZE), rel=0.01
    )


def test_figures_by_hand(dataset):
    split = dataset[1].split("validation")  # 83 tokens, 41 words, 249 bytes
    sums = {"loss_sum": 144.0, "token_count": 72.0}
    found = causal_lm.split_figures(sums, split)
    assert found["loss"] == 2.0
    assert found["token_perplexity"] == pytest.approx(np.exp(2))
    assert found["word_perplexity"] == pytest.approx(np.exp(2 * 83 / 41))
    assert found["bits_per_byte"] == pytest.approx(2 * 83 / 249 / np.log(2))


def test_where_white_space_separates_no_words_there_is_no_word_perplexity(dataset):
    split = dataset[1].split("validation")
    split = dataclasses.replace(split, words=3, bytes=3 * 700)
    figures = causal_lm.split_figures({"loss_sum": 144.0, "token_count": 72.0}, split)
    assert figures["word_perplexity"] is None
    assert figures["bits_per_byte"] > 0


def test_a_split_without_a_scorable_token_is_one_message():
    with pytest.raises(DataError, match="must hold a token that bears loss"):
        causal_lm.figures({"loss_sum": 0.0, "token_count": 0.0})


def test_perplexity_of_a_hopeless_model_is_a_number():
    sums = {"loss_sum": 1e6, "token_count": 1.0}
    assert math.isfinite(causal_lm.figures(sums)["perplexity"])
