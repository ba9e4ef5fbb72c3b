"""Tests that differences between a dataset and its manifest are reported."""

import json
import os
import shutil

import numpy as np
import pytest

from configs.errors import DataError
from tests import programs
from tests.conftest import VOCABULARY_SIZE, assert_refused
from tfrecords import checksums, manifest, schema, verify, writer

SHARD = "train-00001-of-00003.tfrecord"
RECORD_BYTES = schema.frame_bytes(8, np.dtype("<u2"))


def test_a_rewritten_shard_is_detected(dataset):
    folder, written = dataset
    detector = verify.ShardChangeDetector(str(folder), written)
    detector.check()
    (folder / "unrelated.tfrecord").write_bytes(b"x")
    detector.check()
    os.utime(folder / SHARD, ns=(1, 1))
    with pytest.raises(DataError, match=f"must not change.*{SHARD}"):
        detector.check()


def test_the_shards_of_a_new_dataset_are_accepted(dataset):
    folder, written = dataset
    for split in written.splits:
        verify.verify_shards(str(folder), written, split)


def cut_at_a_record_boundary(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 10 * 9])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b""), "It has 0"),
        (cut_at_a_record_boundary, "must have"),
        (lambda path: shutil.copy(path.parent / "manifest.json", path), "must have"),
    ],
)
def test_a_shard_of_the_wrong_size_is_refused(dataset, damage, message):
    folder, written = dataset
    damage(folder / SHARD)
    with pytest.raises(DataError, match=message) as error:
        verify.verify_shards(str(folder), written, "train")
    assert SHARD in str(error.value)


def test_counts_that_contradict_the_sizes_are_refused(dataset):
    folder, _ = dataset
    values = checksums.unsealed(json.loads((folder / "manifest.json").read_text()))
    values["splits"]["train"]["shards"][0]["num_records"] += 1
    (folder / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="must have 30 records"):
        verify.verify_shards(str(folder), manifest.load(str(folder)), "train")


def test_a_different_tokenizer_is_refused(dataset):
    folder, written = dataset
    verify.verify_files(str(folder), written)
    path = folder / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace("<|endoftext|>", "<|end|>"))
    with pytest.raises(DataError, match="must hold the tokenizer"):
        verify.verify_files(str(folder), written)


def test_training_on_a_truncated_shard_is_refused_before_it_starts(dataset, tmp_path):
    folder, _ = dataset
    cut_at_a_record_boundary(folder / SHARD)
    result = programs.run(
        "trainer.train",
        "--config=configs/quickstart.py",
        f"--data_dir={folder}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert_refused(result, f"{SHARD} must have")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["events.jsonl"]


def problems(folder):
    loaded = manifest.load(str(folder))
    return "\n".join(
        problem
        for split in loaded.splits
        for problem in verify.examine(str(folder), loaded, split)[1]
    )


def test_an_undamaged_dataset_has_no_problems(dataset, tokens):
    folder, written = dataset
    statistics, train_problems = verify.examine(str(folder), written, "train")
    assert train_problems == []
    assert statistics.num_records == 30
    assert statistics.real_tokens == len(tokens)
    assert statistics.padding_tokens == 30 * 8 - len(tokens)
    assert (statistics.smallest_id, statistics.largest_id) == (
        tokens.min(),
        tokens.max(),
    )
    assert statistics.lengths == {8: 29, 3: 1}


@pytest.mark.parametrize("offset", range(0, RECORD_BYTES, 3))
def test_a_flipped_bit_is_reported_with_its_record(dataset, offset):
    folder, _ = dataset
    data = bytearray((folder / SHARD).read_bytes())
    data[4 * RECORD_BYTES + offset] ^= 1
    (folder / SHARD).write_bytes(data)
    assert f"{SHARD}, record 4: its " in problems(folder)


@pytest.mark.parametrize("kept", [0, RECORD_BYTES * 3, RECORD_BYTES * 3 + 5, -1])
def test_a_truncated_shard_is_reported(dataset, kept):
    folder, _ = dataset
    (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:kept])
    assert SHARD in problems(folder)


def rows(data: bytes) -> list[bytes]:
    return [data[i : i + RECORD_BYTES] for i in range(0, len(data), RECORD_BYTES)]


@pytest.mark.parametrize(
    "change",
    [
        lambda r: [r[1], r[0], *r[2:]],
        lambda r: [r[0], r[0], *r[2:]],
    ],
)
def test_swapped_and_duplicated_records_are_reported(dataset, change):
    folder, _ = dataset
    before = rows((folder / SHARD).read_bytes())
    (folder / SHARD).write_bytes(b"".join(change(before)))
    assert f"{SHARD} must have the SHA-256" in problems(folder)


@pytest.mark.parametrize(
    ("row", "length", "message"),
    [
        ([1] * 9, None, "must have 8 tokens. It has 9"),
        ([VOCABULARY_SIZE] * 8, None, f"the token id {VOCABULARY_SIZE}, outside"),
        ([1] * 8, 9, "its length 9 exceeds"),
    ],
)
def test_an_invalid_record_is_reported(dataset, row, length, message):
    folder, _ = dataset
    good = schema.serialize(np.ones(8, "<u2"))
    bad = schema.serialize(np.array(row, "<u2"), length)
    writer.write_shard(str(folder / SHARD), [good, bad])
    assert f"{SHARD}, record 1: it" in problems(folder)
    assert message in problems(folder)
