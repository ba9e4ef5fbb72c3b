"""What the user names -> files, pieces and documents."""

import csv
import errno
import hashlib
import json
import lzma
import os
import pathlib

import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds

from configs.errors import DataError
from configs.schema import DataConfig
from data_pipeline.documents.document import Document
from data_pipeline.sources import finding, input_files, pieces, registry
from data_pipeline.sources.input_files import Piece
from tests.conftest import shared
from tests.data_pipeline.runs import run


def find(names, **config):
    return finding.find_files(str(names), DataConfig(**config), flag="input")


def texts(names, config=None, piece_bytes=1 << 30):
    config = config or DataConfig()
    return [
        b"".join(document.parts).decode()
        for file in find(names)
        for piece in pieces.cut(file, config, piece_bytes)
        for document in pieces.read(piece, config)
        if not document.skipped
    ]


def test_files_folders_and_globs_in_any_order(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.txt", "sub/c.txt"):
        (tmp_path / name).write_text(name)
    expected = ["a.txt", "b.txt", "sub/c.txt"]
    assert texts(tmp_path) == expected
    assert texts(f"{tmp_path}/**/*.txt") == expected
    names = [f"{tmp_path}/sub", f"{tmp_path}/b.txt", f"{tmp_path}/*.txt"]
    assert texts(",".join(names)) == expected


def test_a_path_may_hold_commas_and_a_list_may_be_of_lines(tmp_path):
    for folder in ("a,b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x,y.txt").write_text(f"{folder}/x,y")
    (tmp_path / "z.txt").write_text("z")
    both, z = [f"{tmp_path}/{folder}/x,y.txt" for folder in ("a,b", "c")], "z.txt"
    assert texts(both[0]) == texts(f"{tmp_path}/a,b/*.txt") == ["a,b/x,y"]
    assert texts("\n".join(both)) == ["a,b/x,y", "c/x,y"]
    assert texts(f"{both[0]}\n{tmp_path}/c,{tmp_path}/{z}") == ["a,b/x,y", "c/x,y", "z"]


def test_a_folder_that_a_glob_selects_is_read(tmp_path):
    (tmp_path / "tree/sub/deep").mkdir(parents=True)
    names = ["tree/a.txt", "tree/sub/b.txt", "tree/sub/deep/c.txt"]
    for name in names:
        (tmp_path / name).write_text(name)
    assert texts(f"{tmp_path}/tree/*") == texts(f"{tmp_path}/tree") == names


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/a.txt").write_text("a")
    scan = os.scandir

    def refuse(folder):
        """Root may read everything."""
        if folder.endswith("sub"):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    for pattern in ("tree", "tree/*", "*/*", "**"):
        with pytest.raises(DataError, match=r"tree/sub must be readable.*denied"):
            find(tmp_path / pattern)
    monkeypatch.setattr(os, "scandir", scan)
    (tmp_path / "tree/lost").symlink_to("nothing")
    with pytest.raises(DataError, match=r"tree/lost must be readable.*No such file"):
        find(tmp_path)
    (tmp_path / "tree/lost").unlink()
    os.mkfifo(tmp_path / "tree/pipe")
    with pytest.raises(DataError, match=r"tree/pipe must be a file"):
        find(tmp_path)


def test_hidden_files_are_left_out_with_a_word(tmp_path, caplog):
    for name in ("a.txt", ".b.txt"):
        (tmp_path / name).write_text(name)
    assert texts(tmp_path) == ["a.txt"]
    assert "left out: 1 hidden files and folders" in caplog.text
    assert ".b.txt" in caplog.text


def write_rows(path, values):
    """Rows with the text, or without, as JSONL or Parquet."""
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({"text": v, "id": 1}) for v in values))
    else:
        pyarrow.parquet.write_table(pyarrow.table({"text": values}), path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_rows_without_text_are_refused_or_skipped_and_counted(tmp_path, name):
    write_rows(tmp_path / name, ["one two " * 99, None, "three four " * 99, None] * 9)
    settings = {"validation_fraction": 0.0, "vocab_size": 300}
    with pytest.raises(DataError, match=r"NoneType.*--config.data.null_text=skip"):
        run(tmp_path / name, tmp_path / "refused", **settings)
    written = run(tmp_path / name, tmp_path / "out", null_text="skip", **settings)
    split = written.split("train")
    assert (split.documents, split.skipped) == (18, {"null": 18})


def test_a_line_without_the_field_is_skipped_like_one_without_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"other": 1}\n{"text": 5}')
    (file,) = find(tmp_path)
    whole = Piece(file, 0, file.num_bytes)
    with pytest.raises(DataError, match=r"a\.jsonl:2.*null_text=skip"):
        list(pieces.read(whole, DataConfig()))
    reading = pieces.read(whole, DataConfig(null_text="skip"))
    assert [next(reading).skipped for _ in range(2)] == ["", "null"]
    with pytest.raises(DataError, match=r"a\.jsonl:3.*must be a string"):
        next(reading)


@pytest.mark.parametrize(
    ("name", "document"),
    [("a.jsonl", "line"), ("a.csv", "line"), ("a.txt", "line"), ("a.txt", "file")],
)
def test_a_line_of_70_megabytes_is_read(tmp_path, name, document):
    text = "some words " * (70_000_000 // 11)
    values = {"a.jsonl": json.dumps({"text": text}), "a.csv": f"text\n{text}\n"}
    (tmp_path / name).write_text(values.get(name, text))
    (file,) = find(tmp_path)
    reading = pieces.read(Piece(file, 0, file.num_bytes), DataConfig(document=document))
    (size,) = [sum(map(len, each.parts)) for each in reading]
    assert size == len(text)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("piece_bytes", [1, 2, 7, 10, 1000])
@pytest.mark.parametrize("document", ["line", "paragraph"])
def test_cutting_a_file_moves_no_document(tmp_path, document, piece_bytes, ending):
    lines = ["", "one", "twö 語", "", " ", "three", "", "four", "five", "", ""]
    (tmp_path / "a.txt").write_bytes(ending.join(lines).encode())
    config = DataConfig(document=document)
    expected = {
        "line": ["one", "twö 語", "three", "four", "five"],
        "paragraph": [f"one{ending}twö 語", "three", f"four{ending}five"],
    }[document]
    assert texts(tmp_path, config, piece_bytes) == expected
    (file,) = find(tmp_path)
    cut = pieces.cut(file, config, piece_bytes)
    assert cut[0].start == 0
    assert cut[-1].end == file.num_bytes
    if piece_bytes < 20:
        assert len(cut) > 1


@pytest.mark.parametrize("piece_bytes", [1, 30, 1000])
@pytest.mark.parametrize("quoted", [False, True])
def test_cutting_a_table_moves_no_row(tmp_path, piece_bytes, quoted):
    rows = [[f"text {i}" + "\nmore, and" * quoted, str(i)] for i in range(9)]
    with open(tmp_path / "a.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([["text", "id"], *rows])
    assert texts(tmp_path, piece_bytes=piece_bytes) == [row[0] for row in rows]
    (file,) = find(tmp_path)
    num_pieces = len(pieces.cut(file, DataConfig(), piece_bytes))
    assert num_pieces == 1 if quoted or piece_bytes == 1000 else num_pieces > 1


def test_a_file_is_described_by_size_and_hash(tmp_path):
    (tmp_path / "a.JSONL.gz").write_bytes(b"content")
    (file,) = find(tmp_path)
    assert (file.format, file.compression, file.num_bytes) == ("jsonl", ".gz", 7)
    assert file.sha256 == hashlib.sha256(b"content").hexdigest()


@pytest.mark.parametrize("name", ["a.json", "a.zip", "a.txt.xz", "a.pdf", "A.TAR"])
def test_files_of_other_formats_are_refused(tmp_path, name):
    (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"must be plain text, or end in .* Leave it"):
        find(tmp_path)


@pytest.mark.parametrize("names", ["", " , ", "/nowhere/*.txt"])
def test_input_that_does_not_exist_is_refused(names):
    with pytest.raises(DataError, match="--input"):
        find(names)


def test_empty_input_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match="files are empty"):
        find(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["tfds:no_such_set/train", "tfds:train", "tfds:ag_news_subset:9.9.9/train"],
)
def test_a_dataset_that_does_not_exist_is_named(name, tmp_path):
    with pytest.raises(DataError, match="tfds:NAME") as error:
        find(name, tfds_data_dir=str(tmp_path))
    assert name in str(error.value)


@pytest.mark.parametrize("change", ["append", "rewrite", "remove"])
def test_a_file_that_changes_while_it_is_read_is_named(tmp_path, change):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": str(i)}) for i in range(9)))
    (file,) = find(path)
    reading = pieces.read(Piece(file, 0, file.num_bytes), DataConfig())
    next(reading)
    if change == "append":
        path.write_bytes(path.read_bytes() + b'\n{"text": "more"}')
    elif change == "rewrite":
        data = path.read_bytes()
        path.write_bytes(data.replace(b"8", b"9"))
    else:
        path.unlink()
    with pytest.raises(DataError, match=r"a\.jsonl must not change"):
        list(reading)


def test_python_docs_are_prose_of_the_standard_library():
    config = DataConfig()
    files = find("builtin:python_docs")
    assert not [file.path for file in files if "site-packages" in file.path]
    by_name = {file.path.rsplit("/", 1)[1]: file for file in files}
    topics = [
        b"".join(document.parts)
        for document in pieces.read(Piece(by_name["topics.py"], 0, 1), config)
    ]
    assert len(topics) > 50
    assert any(b"assignment" in text for text in topics)
    textwrap = Piece(by_name["textwrap.py"], 0, 1)
    ((text,),) = [document.parts for document in pieces.read(textwrap, config)]
    assert text.startswith(b"Text wrapping and filling.")
    assert b"TextWrapper.wrap\n\nwrap(text : string) -> [string]" in text


def test_a_file_is_read_once_whatever_it_is_called(tmp_path, monkeypatch):
    (tmp_path / "a[1].txt").write_text("one")
    (tmp_path / "link.txt").symlink_to("a[1].txt")
    monkeypatch.chdir(tmp_path)
    assert texts(f"{tmp_path},./a[1].txt,a[1].txt,*.txt") == ["one"]
    assert texts("a[1].txt") == ["one"]


def test_a_slice_of_a_dataset_is_refused():
    with pytest.raises(DataError, match="must name a whole split"):
        find("tfds:name/train[:10%]")


def read_reversed_lines(piece, config):
    del config
    for _, line in input_files.lines(piece):
        yield Document((line.strip()[::-1],))


def test_a_source_is_one_function_and_one_line(tmp_path, monkeypatch):
    added = registry.Format(read=read_reversed_lines, endings=(".rev",))
    monkeypatch.setitem(registry.FORMATS, "reversed", added)
    (tmp_path / "a.rev").write_text("abc\nde")
    assert texts(tmp_path) == ["cba", "ed"]
    with pytest.raises(DataError, match="must have a field 'label'"):
        texts(tmp_path, DataConfig(mode="labelled"))


def test_a_compression_is_one_line(tmp_path, monkeypatch):
    added = (lzma.open, (lzma.LZMAError, EOFError))
    monkeypatch.setitem(input_files.COMPRESSIONS, ".lzma", added)
    data = lzma.compress(b'{"text": "packed"}\n' * 3)
    path = tmp_path / "a.jsonl.lzma"
    path.write_bytes(data)
    assert texts(tmp_path) == ["packed"] * 3
    for damaged in (data[:-9], b"not compressed"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.jsonl\.lzma must be whole"):
            texts(tmp_path)


class Corpus(tfds.core.GeneratorBasedBuilder):
    """WikiText-2's lines as a dataset, in their order."""

    name = "local_corpus"
    VERSION = tfds.core.Version("1.0.0")
    lines: tuple[str, ...] = ()

    def _info(self):
        features = tfds.features.FeaturesDict(
            {"body": tfds.features.Text(), "kind": tfds.features.ClassLabel(names="ab")}
        )
        return tfds.core.DatasetInfo(
            builder=self, features=features, disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index, line in enumerate(self.lines):
            yield index, {"body": line, "kind": index % 2}


def test_tfds_gives_the_documents_that_files_give(tmp_path):
    lines = pathlib.Path(shared("wikitext-2/wiki.valid.raw")).read_text().split("\n")
    lines = [line for line in lines if line.strip()][:700]
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "text.txt").write_text("\n".join(lines))
    Corpus.lines = tuple(lines)
    Corpus(data_dir=str(tmp_path / "tfds")).download_and_prepare()
    settings = {"document": "line", "num_shards": 4}
    from_files = run(tmp_path / "files", tmp_path / "a", **settings)
    from_tfds = run(
        "tfds:local_corpus:1.0.0/train",
        tmp_path / "b",
        num_workers=1,
        tfds_data_dir=str(tmp_path / "tfds"),
        text_field="body",
        **settings,
    )
    assert from_tfds.splits == from_files.splits
    assert from_tfds.split("train").documents > 600
    labelled = run(
        "tfds:local_corpus/train",
        tmp_path / "c",
        tfds_data_dir=str(tmp_path / "tfds"),
        text_field="body",
        label_field="kind",
        mode="labelled",
    )
    assert set(labelled.split("train").labels) == {"0", "1"}
