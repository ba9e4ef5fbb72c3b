"""Fixtures of the tests of data_pipeline."""

import json

import numpy as np
import pytest


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Four files of documents in several scripts, one of them of many lines."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    words = ["the", "tree", "Wörter", "語言", "🙂", "a", "(b)", "\tc", "don't", "1,000"]
    for name, size in (("one", 40), ("two", 900), ("three", 3000), ("four", 5)):
        lines = [
            json.dumps({"text": " ".join(generator.choice(words, 20))})
            for _ in range(size)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def labelled_corpus(tmp_path_factory):
    """Labelled documents of 1 to 120 words, every tenth the same as one before."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(1)
    words = ["the", "tree", "Wörter", "語言", "🙂", "a", "(b)", "\tc", "don't", "1,000"]
    for name, size in (("one", 700), ("two", 150), ("three", 9)):
        texts = []
        for index in range(size):
            length = generator.integers(1, 120)
            repeated = index % 10 == 9
            texts.append(
                texts[index // 2]
                if repeated
                else " ".join(generator.choice(words, length))
            )
        lines = [json.dumps({"text": t, "label": i % 3}) for i, t in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder
