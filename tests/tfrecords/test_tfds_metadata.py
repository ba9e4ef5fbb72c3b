"""TensorFlow Datasets reads a dataset by its folder, without this project."""

import json
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.data_pipeline.runs import run
from tfrecords import inspect, manifest, tfds_metadata, verify

SCRIPT = """
    import sys
    *folders, root, ours = sys.argv[1:]
    sys.path = [path for path in sys.path if path not in ("", root)]
    sys.meta_path.insert(0, type("Refuse", (), {"find_spec": staticmethod(
        lambda name, *_: 1 / 0 if name.split(".")[0] in ours.split() else None)}))
    import numpy as np
    import tensorflow_datasets as tfds
    in_order = tfds.ReadConfig(interleave_cycle_length=1)
    for folder in folders:
        builder = tfds.builder_from_directory(folder)
        for split in builder.info.splits:
            dataset = builder.as_dataset(split=split, read_config=in_order)
            examples = list(tfds.as_numpy(dataset))
            assert len(examples) == builder.info.splits[split].num_examples
            names = examples[0]
            arrays = {name: np.stack([e[name] for e in examples]) for name in names}
            np.savez(f"{folder}/{split}.npz", **arrays)
"""
MODES = {
    "packed": {"num_shards": 11},
    "document": {"start_token": "<|start|>"},
    "labelled": {"padding_side": "left"},
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Labelled documents of 1 to 120 words."""
    path = tmp_path_factory.mktemp("texts") / "a.jsonl"
    generator = np.random.default_rng(0)
    rows = [
        {"text": "many words " * int(size), "label": int(size) - 60}
        for size in generator.integers(1, 120, 300)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_tfds_reads_every_token(texts, tmp_path):
    """Of each mode, where nothing of this project can be imported."""
    for mode, settings in MODES.items():
        run(texts, tmp_path / mode, vocab_size=300, mode=mode, **settings)
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT)]
    command += [*(str(tmp_path / mode) for mode in MODES), str(ROOT)]
    command += ["configs tfrecords data_pipeline trainer"]
    process = subprocess.run(command, cwd="/", capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    for mode in MODES:
        written = manifest.load(str(tmp_path / mode))
        for name in written.splits:
            check_split(tmp_path / mode, written, name)


def check_split(folder, written, name):
    """Compares what TFDS has read of a split with the records by this project."""
    split = written.split(name)
    records = [
        record
        for shard in split.shards
        for record in verify.records(str(folder / shard.name), written.dtype)
    ]
    columns = zip(*records, strict=True)
    features = dict(zip(("tokens", "length", "label"), columns, strict=True))
    arrays = dict(np.load(folder / f"{name}.npz"))
    assert (
        set(arrays)
        == {
            "packed": {"tokens"},
            "document": {"tokens", "length"},
            "labelled": {"tokens", "length", "label"},
        }[written.mode]
    )
    for feature, values in arrays.items():
        np.testing.assert_array_equal(values, np.stack(features[feature]))
    assert arrays["tokens"].shape == (split.num_records, written.sequence_length)


def test_a_large_vocabulary_is_read_as_int32(dataset):
    """NumPy's uint32 on disk, which TensorFlow does not decode."""
    values = {**vars(dataset[1]), "token_dtype": "uint32"}
    features = tfds_metadata.contents(manifest.Manifest(**values))["features.json"]
    tokens = json.loads(features)["featuresDict"]["features"]["tokens"]["tensor"]
    assert tokens["dtype"] == "int32"


def test_the_files_are_verified_where_they_are(texts, tmp_path):
    run(texts, tmp_path, vocab_size=300)
    assert inspect.inspect(str(tmp_path), read_records=True, num_examples=0)["verified"]
    path = tmp_path / "dataset_info.json"
    path.write_text(path.read_text().replace('"0', '"1', 1) + " ")
    with pytest.raises(ValueError, match=r"dataset_info\.json must have the SHA-256"):
        inspect.inspect(str(tmp_path), read_records=False, num_examples=0)


def test_the_snippets_of_the_documentation_read_the_dataset(texts, tmp_path):
    """Those of docs/data.md, as printed, beside the records by this project."""
    written = run(texts, tmp_path / "packed", vocab_size=300)
    page = (ROOT / "docs/data.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(snippets) == 2
    shards = written.split("train").shards
    for snippet in snippets:
        values = {}
        exec(snippet.replace("data/mine", str(tmp_path / "packed")), values)
        rows = [np.asarray(row) for row in values["rows"]]
        expected = [
            tokens
            for shard in shards
            for tokens, *_ in verify.records(
                str(tmp_path / "packed" / shard.name), written.dtype
            )
        ]
        np.testing.assert_array_equal(np.stack(rows), np.stack(expected))
