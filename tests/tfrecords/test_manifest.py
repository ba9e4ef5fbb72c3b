"""A dataset that is not what its manifest says is refused, with the file's name."""

import json
import shutil

import pytest

from configs.errors import DataError
from tests import programs
from tests.conftest import assert_refused, shared
from tfrecords import fingerprints, manifest, verify


def test_load_gives_back_what_was_written(dataset):
    folder, written = dataset
    loaded = manifest.load(str(folder))
    assert loaded == written
    assert loaded.fingerprint == written.fingerprint
    for split in ("train", "validation"):
        verify.verify_shards(str(folder), loaded, split)


def test_a_folder_without_manifest_is_no_dataset(tmp_path):
    with pytest.raises(DataError, match=r"no manifest\.json"):
        manifest.load(str(tmp_path))


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: values.pop("splits"),
        lambda values: values.update(unknown=1),
        lambda values: values["splits"]["train"]["shards"][0].update(name="../x"),
        lambda values: values["splits"]["train"]["shards"][0].update(name="/etc/x"),
    ],
)
def test_a_damaged_manifest_is_refused(dataset, damage):
    folder, _ = dataset
    values = json.loads((folder / "manifest.json").read_text())
    damage(values)
    (folder / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="is damaged"):
        manifest.load(str(folder))


def test_another_format_version_is_refused(dataset):
    folder, _ = dataset
    values = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**values, "format_version": 9}))
    with pytest.raises(DataError, match="Received: 9"):
        manifest.load(str(folder))


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
def test_a_shard_of_another_size_is_named(dataset, damage, message):
    folder, written = dataset
    damage(folder / "train-00001-of-00003.tfrecord")
    with pytest.raises(DataError, match=message) as error:
        verify.verify_shards(str(folder), written, "train")
    assert "train-00001-of-00003.tfrecord" in str(error.value)


def test_counts_that_do_not_fit_the_sizes_are_refused(dataset):
    folder, _ = dataset
    values = json.loads((folder / "manifest.json").read_text())
    values["splits"]["train"]["shards"][0]["num_records"] += 1
    (folder / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="must have 30 records"):
        verify.verify_shards(str(folder), manifest.load(str(folder)), "train")


def test_another_tokenizer_in_the_folder_is_refused(dataset):
    folder, written = dataset
    verify.verify_tokenizer(str(folder), written)
    path = folder / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace("<|endoftext|>", "<|end|>"))
    with pytest.raises(DataError, match="must hold the tokenizer"):
        verify.verify_tokenizer(str(folder), written)


def test_the_fingerprint_of_a_tokenizer_does_not_depend_on_its_files(tmp_path):
    from transformers import GPT2TokenizerFast

    shared("gpt2-vocabulary/vocab.json")
    pair = shared("gpt2-vocabulary/merges.txt").removesuffix("merges.txt")
    GPT2TokenizerFast.from_pretrained(pair).save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink(missing_ok=True)
    fingerprint = fingerprints.of_tokenizer(pair)
    assert fingerprints.of_tokenizer(str(tmp_path)) == fingerprint
    assert fingerprints.of_tokenizer(str(tmp_path.parent)) is None

    changed = json.loads((tmp_path / "tokenizer.json").read_text())
    changed["model"]["merges"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed))
    assert fingerprints.of_tokenizer(str(tmp_path)) != fingerprint


def test_the_trainer_stops_before_it_builds_anything(dataset, tmp_path):
    folder, _ = dataset
    cut_at_a_record_boundary(folder / "train-00001-of-00003.tfrecord")
    found = programs.run(
        "trainer.train",
        "--config=configs/quickstart.py",
        f"--data_dir={folder}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert_refused(found, "train-00001-of-00003.tfrecord must have")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["events.jsonl"]
