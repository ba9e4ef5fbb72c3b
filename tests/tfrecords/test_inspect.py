"""`tfrecords.inspect`: damage is named by shard and record, statistics are right."""

import json
import shutil

import numpy as np
import pytest

from configs.errors import DataError
from tests.conftest import VOCABULARY_SIZE, assert_refused, run_program
from tfrecords import fingerprints, inspect, manifest, schema, verify, writer

SHARD = "train-00001-of-00003.tfrecord"


def problems(folder):
    found = manifest.load(str(folder))
    return "\n".join(
        problem
        for split in found.splits
        for problem in verify.examine(str(folder), found, split)[1]
    )


def test_a_whole_dataset_has_no_problems(dataset, tokens):
    folder, written = dataset
    statistics, found = verify.examine(str(folder), written, "train")
    assert found == []
    assert statistics.num_records == 30
    assert statistics.real_tokens == len(tokens)
    assert statistics.padding_tokens == 30 * 8 - len(tokens)
    assert (statistics.smallest_id, statistics.largest_id) == (
        tokens.min(),
        tokens.max(),
    )
    assert statistics.lengths == {8: 29, 3: 1}


RECORD_BYTES = schema.frame_bytes(8, np.dtype("<u2"))


@pytest.mark.parametrize("place", range(0, RECORD_BYTES, 3))
def test_any_flipped_bit_is_found_in_its_record(dataset, place):
    folder, _ = dataset
    data = bytearray((folder / SHARD).read_bytes())
    data[4 * RECORD_BYTES + place] ^= 1
    (folder / SHARD).write_bytes(data)
    assert f"{SHARD}, record 4: its " in problems(folder)


@pytest.mark.parametrize("kept", [0, RECORD_BYTES * 3, RECORD_BYTES * 3 + 5, -1])
def test_a_shard_that_is_cut_is_found(dataset, kept):
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
def test_records_exchanged_or_doubled_are_found(dataset, change):
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
def test_a_record_of_another_shape_is_found(dataset, row, length, message):
    folder, _ = dataset
    good = schema.serialize(np.ones(8, "<u2"))
    bad = schema.serialize(np.array(row, "<u2"), length)
    writer.write_shard(str(folder / SHARD), [good, bad])
    assert f"{SHARD}, record 1: it" in problems(folder)
    assert message in problems(folder)


def run(folder, *arguments):
    return run_program("tfrecords.inspect", f"--data_dir={folder}", *arguments)


def write_tokenizer(folder):
    """A vocabulary of one letter each, so that examples can be read."""
    letters = {chr(48 + i): i for i in range(VOCABULARY_SIZE)}
    values = {
        "version": "1.0",
        "added_tokens": [],
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": letters, "unk_token": "0"},
    }
    path = folder / "tokenizer" / "tokenizer.json"
    path.write_text(json.dumps(values))
    described = json.loads((folder / "manifest.json").read_text())
    fingerprint = fingerprints.of_tokenizer(str(folder / "tokenizer"))
    described["tokenizer_fingerprint"] = fingerprint
    (folder / "manifest.json").write_text(json.dumps(described))


def test_the_program_prints_statistics_and_examples(dataset, tokens):
    folder, _ = dataset
    write_tokenizer(folder)
    found = run(folder, "--show=2", "--json")
    assert found.returncode == 0, found.stderr
    result = json.loads(found.stdout)
    train = result["splits"]["train"]
    assert result["verified"] is True
    assert train["records"] == 30
    assert train["padding_share"] == pytest.approx(5 / 240)
    assert train["largest_token_id"] == tokens.max()
    assert sum(train["records_by_length"].values()) == 30
    first = "".join(chr(48 + token) for token in tokens[:8])
    assert result["examples"][0]["text"] == first
    table = run(folder, "--noverify")
    assert table.returncode == 0, table.stderr
    assert "verified                      False" in table.stdout
    assert first in table.stdout


@pytest.mark.parametrize("content", ['{"model"', "[]", '{"model": {}}', "\xff"])
def test_a_damaged_tokenizer_is_named(dataset, content):
    path = dataset[0] / "tokenizer" / "tokenizer.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match="missing, damaged or another"):
        inspect.inspect(str(dataset[0]), verify=False, show=0)


def test_a_damaged_example_is_named(dataset):
    path = dataset[0] / "train-00000-of-00003.tfrecord"
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    write_tokenizer(dataset[0])
    found = run(dataset[0], "--noverify")
    assert_refused(found, f"{path}: ")


def test_a_mistyped_flag_is_one_message(dataset):
    found = run(dataset[0], "--shwo=2")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("error: Unknown command line flag 'shwo'")


def test_the_program_names_all_damage_in_one_message(dataset):
    folder, _ = dataset
    write_tokenizer(folder)
    (folder / SHARD).unlink()
    shutil.copy(folder / "train-00000-of-00003.tfrecord", folder / "x.tfrecord")
    found = run(folder)
    assert_refused(
        found, f"{SHARD} is missing", "x.tfrecord, which is not in the manifest"
    )
    assert found.stdout == ""
