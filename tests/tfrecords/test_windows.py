"""Tests that windows score each token once, with as much context as possible."""

import dataclasses

import numpy as np
import pytest

from configs.errors import DataError
from tests.conftest import VOCABULARY_SIZE, write_dataset
from tfrecords import manifest, schema, writer
from tfrecords.windows import Windows


def read(folder, written, **cut):
    """Returns the windows of a single host: (tokens, length, first)."""
    windows = Windows(str(folder), written, split="validation", **cut)
    batches = windows.batches(global_batch_size=4, batch_size=4)
    rows = list(batches.unbatch().as_numpy_iterator())
    assert len(rows) % 4 == 0
    rows = [row for row in rows if row["length"]]
    assert len(rows) == windows.count
    return [(row["tokens"], int(row["length"]), int(row["first"])) for row in rows]


def by_hand(text, context_length, stride):
    """Returns (window, first) as Hugging Face's sliding window computes them."""
    windows, scored = [], 0
    for begin in range(0, len(text), stride):
        end = min(begin + context_length, len(text))
        first = max(scored - begin, 1)
        windows.append((text[begin:end].tolist(), first))
        scored = end
        if end == len(text):
            break
    return windows


CUTS = [(8, 8), (8, 1), (8, 3), (5, 5), (5, 2), (16, 16), (16, 7), (100, 100), (90, 83)]


@pytest.mark.parametrize(("context_length", "stride"), CUTS)
def test_a_stream_is_cut_as_by_hugging_face(dataset, tokens, context_length, stride):
    cut = {"context_length": context_length, "stride": stride}
    windows = read(*dataset, **cut)
    expected = by_hand(tokens[:83], context_length, stride)
    assert [(t[:n].tolist(), first) for t, n, first in windows] == expected
    assert all(len(t) == context_length and not t[n:].any() for t, n, _ in windows)


@pytest.mark.parametrize(("context_length", "stride"), CUTS)
def test_each_token_is_scored_once(dataset, context_length, stride):
    windows = read(*dataset, context_length=context_length, stride=stride)
    scored = []
    for number, (_, length, first) in enumerate(windows):
        scored += range(number * stride + first, number * stride + length)
    without_context = range(0, 83, stride) if stride == context_length else [0]
    assert sorted([*scored, *without_context]) == list(range(83))


@pytest.mark.parametrize("num_tokens", [1, 7, 8, 9, 16])
def test_streams_that_end_near_a_boundary_are_cut_right(tmp_path, num_tokens):
    tokens = np.arange(1, num_tokens + 1) % VOCABULARY_SIZE
    folder = tmp_path / "data"
    written = write_dataset(
        folder, train_tokens=tokens, validation_tokens=tokens, sequence_length=8
    )
    for context_length, stride in ((8, 8), (8, 4), (4, 3)):
        windows = read(folder, written, context_length=context_length, stride=stride)
        expected = by_hand(tokens, context_length, stride)
        assert [(t[:n].tolist(), first) for t, n, first in windows] == expected


def write_labelled_dataset(dataset, lengths, labels):
    """Replaces the validation split by labelled documents of up to 8 tokens."""
    folder, written = dataset
    payloads = []
    for length, label in zip(lengths, labels, strict=True):
        row = np.where(np.arange(8) < length, label + 9, 0).astype(written.dtype)
        payloads.append(schema.serialize(row, length, label))
    path = str(folder / manifest.shard_name("validation", 0, 1))
    split = manifest.Split(
        documents=len(labels),
        tokens=sum(lengths),
        shards=(writer.write_shard(path, payloads),),
    )
    splits = {**written.splits, "validation": split}
    return dataclasses.replace(written, mode="labelled", splits=splits)


def test_the_windows_of_a_labelled_document_have_its_label(dataset):
    lengths, labels = [8, 3, 5, 1, 8], [0, 4, -7, 2, 1]
    written = write_labelled_dataset(dataset, lengths, labels)
    for context_length, windows_per_document in ((8, [1] * 5), (4, [2, 1, 2, 1, 2])):
        windows = Windows(
            str(dataset[0]),
            written,
            split="validation",
            context_length=context_length,
            stride=context_length,
        )
        batches = windows.batches(global_batch_size=4, batch_size=4)
        assert set(batches.element_spec) == {"tokens", "length", "first", "label"}
        assert batches.element_spec["label"].shape == [4]
        rows = list(batches.unbatch().as_numpy_iterator())
        real = [row for row in rows if row["length"]]
        assert windows.count == len(real) == sum(windows_per_document)
        expected = np.repeat(labels, windows_per_document).tolist()
        assert [row["label"] for row in real] == expected
        assert all(row["tokens"][0] == row["label"] + 9 for row in real)


def test_windows_without_labels_have_no_label(dataset):
    windows = Windows(
        *map_path(dataset), split="validation", context_length=8, stride=8
    )
    batches = windows.batches(global_batch_size=4, batch_size=4)
    assert set(batches.element_spec) == {"tokens", "length", "first"}


def test_hosts_read_alternate_windows(dataset):
    folder, written = dataset
    cut = {"split": "validation", "context_length": 8, "stride": 3}
    windows = Windows(str(folder), written, **cut)
    whole = windows.batches(global_batch_size=4, batch_size=4)
    hosts = [
        windows.batches(global_batch_size=4, batch_size=2, host_index=host, num_hosts=2)
        for host in range(2)
    ]
    interleaved = zip(*(list(host.unbatch()) for host in hosts), strict=True)
    shared = [row["tokens"].numpy().tolist() for rows in interleaved for row in rows]
    assert shared == [row["tokens"].numpy().tolist() for row in whole.unbatch()]


@pytest.mark.parametrize("stride", [0, 9])
def test_a_stride_that_skips_tokens_is_refused(dataset, stride):
    with pytest.raises(DataError, match=f"from 1 to the context length.*{stride}"):
        Windows(*map_path(dataset), split="validation", context_length=8, stride=stride)


def test_training_records_are_only_scored_as_stored(dataset):
    folder, written = map_path(dataset)
    whole = {"split": "train", "context_length": 8}
    assert Windows(folder, written, **whole, stride=8).count == 30
    with pytest.raises(DataError, match="random order"):
        Windows(folder, written, **whole, stride=4)


def map_path(dataset: tuple) -> tuple[str, manifest.Manifest]:
    return str(dataset[0]), dataset[1]
