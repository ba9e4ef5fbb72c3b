"""Windows: every token is scored once, with the longest context that it can have."""

import numpy as np
import pytest

from configs.errors import DataError
from tests.conftest import VOCABULARY_SIZE, write_dataset
from tfrecords import manifest
from tfrecords.windows import Windows


def read(folder, written, **cut):
    """The windows that one host reads: (tokens, length, first)."""
    windows = Windows(str(folder), written, split="validation", **cut)
    found = windows.batches(global_batch_size=4, batch_size=4)
    rows = list(found.unbatch().as_numpy_iterator())
    assert len(rows) % 4 == 0
    rows = [row for row in rows if row["length"]]
    assert len(rows) == windows.count
    return [(row["tokens"], int(row["length"]), int(row["first"])) for row in rows]


def by_hand(text, context_length, stride):
    """Hugging Face's sliding window, written for one text: (window, first)."""
    found, scored = [], 0
    for begin in range(0, len(text), stride):
        end = min(begin + context_length, len(text))
        first = max(scored - begin, 1)
        found.append((text[begin:end].tolist(), first))
        scored = end
        if end == len(text):
            break
    return found


CUTS = [(8, 8), (8, 1), (8, 3), (5, 5), (5, 2), (16, 16), (16, 7), (100, 100), (90, 83)]


@pytest.mark.parametrize(("context_length", "stride"), CUTS)
def test_a_stream_is_cut_as_by_hand(dataset, tokens, context_length, stride):
    cut = {"context_length": context_length, "stride": stride}
    found = read(*dataset, **cut)
    expected = by_hand(tokens[:83], context_length, stride)
    assert [(t[:n].tolist(), first) for t, n, first in found] == expected
    assert all(len(t) == context_length and not t[n:].any() for t, n, _ in found)


@pytest.mark.parametrize(("context_length", "stride"), CUTS)
def test_each_token_is_scored_once(dataset, context_length, stride):
    found = read(*dataset, context_length=context_length, stride=stride)
    scored = []
    for number, (_, length, first) in enumerate(found):
        scored += range(number * stride + first, number * stride + length)
    without_context = range(0, 83, stride) if stride == context_length else [0]
    assert sorted([*scored, *without_context]) == list(range(83))


@pytest.mark.parametrize("num_tokens", [1, 7, 8, 9, 16])
def test_streams_that_end_at_an_edge(tmp_path, num_tokens):
    tokens = np.arange(1, num_tokens + 1) % VOCABULARY_SIZE
    folder = tmp_path / "data"
    written = write_dataset(
        folder, train_tokens=tokens, validation_tokens=tokens, sequence_length=8
    )
    for context_length, stride in ((8, 8), (8, 4), (4, 3)):
        found = read(folder, written, context_length=context_length, stride=stride)
        expected = by_hand(tokens, context_length, stride)
        assert [(t[:n].tolist(), first) for t, n, first in found] == expected


def test_hosts_share_the_windows(dataset):
    folder, written = dataset
    cut = {"split": "validation", "context_length": 8, "stride": 3}
    windows = Windows(str(folder), written, **cut)
    whole = windows.batches(global_batch_size=4, batch_size=4)
    hosts = [
        windows.batches(global_batch_size=4, batch_size=2, host_index=host, num_hosts=2)
        for host in range(2)
    ]
    turns = zip(*(list(host.unbatch()) for host in hosts), strict=True)
    shared = [row["tokens"].numpy().tolist() for turn in turns for row in turn]
    assert shared == [row["tokens"].numpy().tolist() for row in whole.unbatch()]


@pytest.mark.parametrize("stride", [0, 9])
def test_a_stride_that_leaves_tokens_out_is_refused(dataset, stride):
    with pytest.raises(DataError, match=f"from 1 to the context length.*{stride}"):
        Windows(*map_path(dataset), split="validation", context_length=8, stride=stride)


def test_training_records_are_only_scored_as_they_are(dataset):
    folder, written = map_path(dataset)
    whole = {"split": "train", "context_length": 8}
    assert Windows(folder, written, **whole, stride=8).count == 30
    with pytest.raises(DataError, match="random order"):
        Windows(folder, written, **whole, stride=4)


def map_path(dataset: tuple) -> tuple[str, manifest.Manifest]:
    return str(dataset[0]), dataset[1]
