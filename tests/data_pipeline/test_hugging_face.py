"""Datasets of Hugging Face: by name, saved folders, and Arrow's files."""

import json
import sys
import tracemalloc

import pyarrow
import pytest

from configs.errors import DataError, UserError
from configs.schema import DataConfig
from data_pipeline.sources import finding, pieces
from data_pipeline.sources.input_files import Piece
from tests.data_pipeline.runs import run

LINES = [f"{number} naïve foxes jump over the dog, 再見." for number in range(2000)]


def write_arrow(path, lines=LINES, *, batch_rows=1000, writer=pyarrow.ipc.new_stream):
    table = pyarrow.table({"text": lines, "label": range(len(lines))})
    with writer(str(path), table.schema) as out:
        out.write_table(table, max_chunksize=batch_rows)


def save(folder):
    """Writes what `Dataset.save_to_disk` does, and what is cached there later."""
    folder.mkdir(parents=True)
    names = [f"data-{shard:05d}-of-00002.arrow" for shard in range(2)]
    for shard, name in enumerate(names):
        write_arrow(folder / name, LINES[shard * 1000 : shard * 1000 + 1000])
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    write_arrow(folder / "cache-0123.arrow", ["must not be read"])
    return names


def find(names, **config):
    return finding.find_files(str(names), DataConfig(**config), flag="input")


@pytest.fixture(scope="module")
def from_text(tmp_path_factory):
    """The dataset that the same documents make as lines of a file."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("\n".join(LINES))
    return run(folder / "text.txt", folder / "data", document="line")


def test_a_saved_folder_gives_the_bytes_that_a_file_gives(tmp_path, from_text):
    save(tmp_path / "saved")
    assert run(tmp_path / "saved", tmp_path / "data").splits == from_text.splits
    assert from_text.split("train").documents > 1500


def test_the_library_and_a_name_give_the_bytes_that_a_file_gives(
    tmp_path, from_text, monkeypatch
):
    """A name may be that of a folder here, so that nothing is downloaded."""
    datasets = pytest.importorskip("datasets", reason="needs the extra `datasets`")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = datasets.Dataset.from_dict({"text": LINES})
    saved = tmp_path / "saved"
    datasets.DatasetDict(train=rows).save_to_disk(saved, num_shards={"train": 2})
    datasets.load_from_disk(saved)["train"].map(lambda row: {"text": "x" + row["text"]})
    assert len(list((saved / "train").glob("cache-*.arrow"))) == 1
    assert run(saved, tmp_path / "a").splits == from_text.splits

    (tmp_path / "files").mkdir()
    lines = (json.dumps({"text": line}) for line in LINES)
    (tmp_path / "files" / "train.jsonl").write_text("\n".join(lines))
    name = f"hf:{tmp_path / 'files'}/train"
    assert run(name, tmp_path / "b").splits == from_text.splits
    assert run(f"hf:{tmp_path}/files:default/train", tmp_path / "c").splits
    for wrong in (f"{name}ing", f"hf:{tmp_path}/no/train"):
        with pytest.raises(DataError, match="hf:NAME") as error:
            find(wrong)
        assert wrong in str(error.value)


def test_a_name_needs_the_library_and_a_whole_split(monkeypatch):
    with pytest.raises(DataError, match="must name a whole split"):
        find("hf:user/name/train[:10%]")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"gpt2-tpu\[datasets\]"):
        find("hf:user/name/train")


def test_one_of_several_splits_must_be_named(tmp_path):
    for split in ("train", "test"):
        save(tmp_path / split)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match=f"train, test.* such as {tmp_path}/train"):
        find(tmp_path)
    assert len(find(tmp_path / "test")) == 2


def test_a_missing_or_truncated_file_is_named(tmp_path):
    first, second = save(tmp_path / "saved")
    data = (tmp_path / "saved" / first).read_bytes()
    # Its end is between two batches: a reader takes it for a whole file.
    write_arrow(tmp_path / "short", LINES[:1000], batch_rows=500)
    short = (tmp_path / "short").read_bytes()
    for damaged in (data[:-9], short[:-8], b"PAR1"):
        (tmp_path / "saved" / first).write_bytes(damaged)
        with pytest.raises(DataError, match=f"{first} must be a whole Arrow file"):
            run(tmp_path / "saved", tmp_path / "data")
    (tmp_path / "saved" / second).unlink()
    with pytest.raises(DataError, match=f"none named .*{second}"):
        find(tmp_path / "saved")


@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json"])
def test_other_json_is_refused_as_before(tmp_path, name):
    (tmp_path / name).write_text("[]")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match=name):
        find(tmp_path)


@pytest.mark.parametrize("writer", [pyarrow.ipc.new_stream, pyarrow.ipc.new_file])
def test_memory_is_bounded_by_a_batch(tmp_path, writer):
    """Not by the file: 40 batches of 1 MB."""
    path = tmp_path / "large.arrow"
    write_arrow(path, ["x" * 10_000] * 4000, batch_rows=100, writer=writer)
    (file,) = find(path)
    before = pyarrow.total_allocated_bytes()
    peak = num_documents = 0
    tracemalloc.start()
    for _ in pieces.read(Piece(file, 0, 1), DataConfig()):
        num_documents += 1
        peak = max(peak, pyarrow.total_allocated_bytes() - before)
    _, python_peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_documents == 4000
    assert file.num_bytes > 40e6
    assert peak < 8e6
    assert python_peak < 8e6
