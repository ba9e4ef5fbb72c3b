"""Tests that manifests are restored, and that damaged ones are refused."""

import json

import pytest

from configs.errors import DataError
from tfrecords import checksums, manifest


def test_a_manifest_is_restored_from_its_file(dataset):
    folder, written = dataset
    loaded = manifest.load(str(folder))
    assert loaded == written
    assert loaded.fingerprint == written.fingerprint


def test_a_folder_without_manifest_is_not_a_dataset(tmp_path):
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
    values = checksums.unsealed(json.loads((folder / "manifest.json").read_text()))
    damage(values)
    (folder / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="is damaged"):
        manifest.load(str(folder))


def test_another_format_version_is_refused(dataset):
    folder, _ = dataset
    values = checksums.unsealed(json.loads((folder / "manifest.json").read_text()))
    (folder / "manifest.json").write_text(json.dumps({**values, "format_version": 9}))
    with pytest.raises(DataError, match="Received: 9"):
        manifest.load(str(folder))


def test_an_unknown_split_is_refused_with_the_known_ones(dataset):
    with pytest.raises(DataError, match=r"one of train, validation, .*'test'"):
        dataset[1].split("test")
