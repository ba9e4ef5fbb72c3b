"""Tests of the program `tfrecords.inspect`."""

import json
import shutil
import subprocess
import sys

import pytest

from configs.errors import DataError
from tests.conftest import ROOT, VOCABULARY_SIZE, assert_refused, run_program
from tfrecords import checksums, fingerprints, inspect

SHARD = "train-00001-of-00003.tfrecord"


def run(folder, *arguments):
    return run_program("tfrecords.inspect", f"--data_dir={folder}", *arguments)


def write_tokenizer(folder):
    """Replaces the tokenizer by one whose tokens are single letters."""
    letters = {chr(48 + i): i for i in range(VOCABULARY_SIZE)}
    values = {
        "version": "1.0",
        "added_tokens": [],
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": letters, "unk_token": "0"},
    }
    path = folder / "tokenizer" / "tokenizer.json"
    path.write_text(json.dumps(values))
    values = checksums.unsealed(json.loads((folder / "manifest.json").read_text()))
    fingerprint = fingerprints.of_tokenizer(str(folder / "tokenizer"))
    values["tokenizer_fingerprint"] = fingerprint
    (folder / "manifest.json").write_text(json.dumps(values))


def test_the_program_prints_statistics_and_examples(dataset, tokens):
    folder, _ = dataset
    write_tokenizer(folder)
    result = run(folder, "--show=2", "--json")
    assert result.returncode == 0, result.stderr
    description = json.loads(result.stdout)
    train = description["splits"]["train"]
    assert description["verified"] is True
    assert train["records"] == 30
    assert train["padding_share"] == pytest.approx(5 / 240)
    assert train["largest_token_id"] == tokens.max()
    assert sum(train["records_by_length"].values()) == 30
    first = "".join(chr(48 + token) for token in tokens[:8])
    assert description["examples"][0]["text"] == first
    table = run(folder, "--noverify")
    assert table.returncode == 0, table.stderr
    assert "verified                      False" in table.stdout
    assert first in table.stdout


@pytest.mark.parametrize("content", ['{"model"', "[]", '{"model": {}}', "\xff"])
def test_a_damaged_tokenizer_is_refused(dataset, content):
    path = dataset[0] / "tokenizer" / "tokenizer.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match="missing, damaged or another"):
        inspect.inspect(str(dataset[0]), read_records=False, num_examples=0)


def test_a_damaged_example_is_refused_with_its_path(dataset):
    path = dataset[0] / "train-00000-of-00003.tfrecord"
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    write_tokenizer(dataset[0])
    result = run(dataset[0], "--noverify")
    assert_refused(result, f"{path}: ")


def test_a_mistyped_flag_is_refused_with_one_message(dataset):
    result = run(dataset[0], "--shwo=2")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: Unknown command line flag 'shwo'")


def test_a_missing_flag_is_refused_without_heavy_imports():
    program = (
        "import sys; sys.argv = ['inspect']; from tfrecords import inspect\n"
        "try: inspect.run()\n"
        "finally: print({'tensorflow', 'tokenizers'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert_refused(result, "--data_dir=DIR is missing")
    assert result.stdout == "set()\n"


def test_all_damage_is_reported_in_one_message(dataset):
    folder, _ = dataset
    write_tokenizer(folder)
    (folder / SHARD).unlink()
    shutil.copy(folder / "train-00000-of-00003.tfrecord", folder / "x.tfrecord")
    result = run(folder)
    assert_refused(
        result, f"{SHARD} is missing", "x.tfrecord, which is not in the manifest"
    )
    assert result.stdout == ""
