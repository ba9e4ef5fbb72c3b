"""The entropy of a text's bigrams, by which a loss is too good to be true."""

import math

import numpy as np
import pytest

from tests.conftest import write_dataset
from tfrecords.windows import Windows
from trainer.tasks import plausibility


def batch(rows):
    length = np.array([len(row) for row in rows])
    tokens = np.full((len(rows), 9), 7)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
    return {"tokens": tokens, "length": length}


def test_entropies_by_hand():
    """Of the pairs 1-2, 1-3, 1-2, 1-3, 4-5: padding and rows' borders are no pairs."""
    batches = [batch([[1, 2], [1, 3]]), batch([[1, 2], [], [1, 3], [6], [4, 5]])]
    unigram, bigram = plausibility.entropies(batches)
    assert unigram == pytest.approx(0.8 * math.log(2.5) + 0.2 * math.log(5))
    assert bigram == pytest.approx(0.8 * math.log(2))


def test_a_text_is_judged_by_its_own_statistics(tmp_path):
    generator = np.random.default_rng(0)
    texts = {
        "noise": generator.integers(0, 8, 4000),
        "cycle": np.arange(4000) % 8,
        "short noise": generator.integers(0, 97, 40),
    }
    lowest = {}
    for name, tokens in texts.items():
        manifest = write_dataset(
            tmp_path / name,
            train_tokens=tokens,
            validation_tokens=tokens,
            sequence_length=16,
        )
        windows = Windows(
            str(tmp_path / name),
            manifest,
            split="validation",
            context_length=16,
            stride=16,
        )
        lowest[name] = plausibility.lowest_loss(windows)
    assert lowest["noise"] == pytest.approx(math.log(8) / 4, rel=0.02)
    # What can be known, and what is too short to tell, raises no alarm.
    assert lowest["cycle"] == pytest.approx(0, abs=1e-9)
    assert lowest["short noise"] < 0.15
