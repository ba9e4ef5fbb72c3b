"""What the user names -> files and pieces."""

import csv
import hashlib
import json

import pytest

from configs.errors import DataError
from configs.schema import DataConfig
from data_pipeline import readers, sources


def texts(names, config=None, piece_bytes=1 << 30):
    config = config or DataConfig()
    return [
        b"".join(document.parts).decode()
        for file in sources.find_files(str(names), "input")
        for piece in sources.cut(file, config, piece_bytes)
        for document in readers.read(piece, config)
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
    (file,) = sources.find_files(str(tmp_path), "input")
    pieces = sources.cut(file, config, piece_bytes)
    assert pieces[0].start == 0
    assert pieces[-1].end == file.num_bytes
    if piece_bytes < 20:
        assert len(pieces) > 1


@pytest.mark.parametrize("piece_bytes", [1, 30, 1000])
@pytest.mark.parametrize("quoted", [False, True])
def test_cutting_a_table_moves_no_row(tmp_path, piece_bytes, quoted):
    rows = [[f"text {i}" + "\nmore, and" * quoted, str(i)] for i in range(9)]
    with open(tmp_path / "a.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([["text", "id"], *rows])
    assert texts(tmp_path, piece_bytes=piece_bytes) == [row[0] for row in rows]
    (file,) = sources.find_files(str(tmp_path), "input")
    num_pieces = len(sources.cut(file, DataConfig(), piece_bytes))
    assert num_pieces == 1 if quoted or piece_bytes == 1000 else num_pieces > 1


def test_a_file_is_described_by_size_and_hash(tmp_path):
    (tmp_path / "a.JSONL.gz").write_bytes(b"content")
    (file,) = sources.find_files(str(tmp_path), "input")
    assert (file.format, file.compression, file.num_bytes) == ("jsonl", ".gz", 7)
    assert file.sha256 == hashlib.sha256(b"content").hexdigest()


@pytest.mark.parametrize("name", ["a.json", "a.zip", "a.txt.xz", "a.pdf", "A.TAR"])
def test_files_that_are_no_text_are_not_taken_for_text(tmp_path, name):
    (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"must be text, JSONL, .* Leave it"):
        sources.find_files(str(tmp_path), "input")


@pytest.mark.parametrize("names", ["", " , ", "/nowhere/*.txt"])
def test_missing_input(names):
    with pytest.raises(DataError, match="--input"):
        sources.find_files(names, "input")


def test_empty_input(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match="are empty"):
        sources.find_files(str(tmp_path), "input")


@pytest.mark.parametrize(
    "name",
    ["tfds:no_such_set/train", "tfds:train", "tfds:ag_news_subset:9.9.9/train"],
)
def test_a_dataset_that_is_not_there_is_named(name, tmp_path):
    with pytest.raises(DataError, match="tfds:NAME") as error:
        sources.find_files(name, "input", tfds_data_dir=str(tmp_path))
    assert name in str(error.value)


@pytest.mark.parametrize("change", ["append", "rewrite", "remove"])
def test_a_file_that_changes_while_it_is_read_is_named(tmp_path, change):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": str(i)}) for i in range(9)))
    (file,) = sources.find_files(str(path), "input")
    reading = readers.read(sources.Piece(file, 0, file.num_bytes), DataConfig())
    next(reading)
    if change == "append":
        path.write_bytes(path.read_bytes() + b'\n{"text": "more"}')
    elif change == "rewrite":
        data = path.read_bytes()
        path.write_bytes(data.replace(b"8", b"9"))
    else:
        path.unlink()
    with pytest.raises(DataError, match=r"a\.jsonl must stay as it is"):
        list(reading)


def test_python_docs_are_there_and_are_prose():
    config = DataConfig()
    files = sources.find_files("builtin:python_docs", "input")
    assert not [file.path for file in files if "site-packages" in file.path]
    by_name = {file.path.rsplit("/", 1)[1]: file for file in files}
    topics = readers.read(sources.Piece(by_name["topics.py"], 0, 1), config)
    found = [b"".join(document.parts) for document in topics]
    assert len(found) > 50
    assert any(b"assignment" in text for text in found)
    textwrap = sources.Piece(by_name["textwrap.py"], 0, 1)
    ((text,),) = [document.parts for document in readers.read(textwrap, config)]
    assert text.startswith(b"Text wrapping and filling.")
    assert b"TextWrapper.wrap\n\nwrap(text : string) -> [string]" in text


def test_a_file_is_read_once_by_whatever_names(tmp_path, monkeypatch):
    (tmp_path / "a[1].txt").write_text("one")
    (tmp_path / "link.txt").symlink_to("a[1].txt")
    monkeypatch.chdir(tmp_path)
    assert texts(f"{tmp_path},./a[1].txt,a[1].txt,*.txt") == ["one"]
    assert texts("a[1].txt") == ["one"]


def test_a_slice_of_a_dataset_is_refused():
    with pytest.raises(DataError, match="must name a whole split"):
        sources.find_files("tfds:name/train[:10%]", "input")
