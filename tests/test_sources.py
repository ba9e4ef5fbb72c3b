"""Input -> documents: formats, cuts, and input that cannot be used."""

import json

import pytest

from configs.schema import DataConfig
from data_pipeline import sources


def documents(names, config=None, piece_bytes=1 << 30):
    config = config or DataConfig()
    return [
        document
        for file in sources.find_files(str(names), "input")
        for piece in sources.cut(file, config, piece_bytes)
        for document in sources.read_documents(piece, config)
    ]


def test_files_folders_and_globs_in_any_order(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.txt", "sub/c.txt"):
        (tmp_path / name).write_text(name)
    expected = ["a.txt", "b.txt", "sub/c.txt"]
    assert documents(tmp_path) == expected
    assert documents(f"{tmp_path}/**/*.txt") == expected
    names = [f"{tmp_path}/sub", f"{tmp_path}/b.txt", f"{tmp_path}/*.txt"]
    assert documents(",".join(names)) == expected


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("piece_bytes", [1, 2, 7, 10, 1000])
@pytest.mark.parametrize("document", ["line", "paragraph"])
def test_cutting_a_file_moves_no_document(tmp_path, document, piece_bytes, ending):
    lines = ["", "one", "twö 語", "", " ", "three", "", "four", "five", "", ""]
    (tmp_path / "a.txt").write_bytes(ending.join(lines).encode())
    config = DataConfig(document=document)
    expected = {
        "line": ["one", "twö 語", "three", "four", "five"],
        "paragraph": ["one\ntwö 語", "three", "four\nfive"],
    }[document]
    assert documents(tmp_path, config, piece_bytes) == expected
    (file,) = sources.find_files(str(tmp_path), "input")
    pieces = sources.cut(file, config, piece_bytes)
    assert pieces[0].start == 0
    assert pieces[-1].end == file.num_bytes
    if piece_bytes < 20:
        assert len(pieces) > 1


@pytest.mark.parametrize("piece_bytes", [1, 30, 1000])
def test_jsonl(tmp_path, piece_bytes):
    texts = ["one\n\ntwo", "語" * 10, "three"]
    lines = [json.dumps({"body": text, "id": 1}) for text in texts]
    (tmp_path / "a.jsonl").write_text("\n".join(["", *lines, ""]))
    config = DataConfig(text_field="body")
    assert documents(tmp_path, config, piece_bytes) == texts


@pytest.mark.parametrize("line", ['{"text": "broken', '{"txt": "x"}', "[1]", '"x"'])
def test_a_malformed_line_is_named(tmp_path, line):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(sources.InputError, match=r"a\.jsonl:3: each line must be"):
        documents(tmp_path)


def test_text_that_is_not_a_string_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": 5}')
    with pytest.raises(sources.InputError, match=r"a\.jsonl:1: .* Received: int"):
        documents(tmp_path)


def test_half_of_a_surrogate_pair_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": "x\\ud83d"}')
    with pytest.raises(sources.InputError, match=r"a\.jsonl:2: .* at character 1"):
        documents(tmp_path)


@pytest.mark.parametrize("document", ["file", "line"])
def test_text_that_is_not_utf8_is_named(tmp_path, document):
    (tmp_path / "a.txt").write_bytes(b"fine\nnot \xff fine\n")
    with pytest.raises(sources.InputError, match=r"a\.txt must be UTF-8. Byte 9 is"):
        documents(tmp_path, DataConfig(document=document))


@pytest.mark.parametrize("names", ["", " , ", "/nowhere/*.txt"])
def test_missing_input(names):
    with pytest.raises(sources.InputError, match="--input"):
        sources.find_files(names, "input")


def test_empty_input(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(sources.InputError, match="are empty"):
        sources.find_files(str(tmp_path), "input")


def test_python_docs_are_there_and_are_prose():
    config = DataConfig()
    files = sources.find_files("builtin:python_docs", "input")
    assert not [file.path for file in files if "site-packages" in file.path]
    by_name = {file.path.rsplit("/", 1)[1]: file for file in files}
    topics = by_name["topics.py"]
    found = list(sources.read_documents(sources.Piece(topics, 0, 1), config))
    assert len(found) > 50
    assert any("assignment" in text for text in found)
    textwrap = sources.Piece(by_name["textwrap.py"], 0, 1)
    (text,) = sources.read_documents(textwrap, config)
    assert text.startswith("Text wrapping and filling.")
    assert "TextWrapper.wrap\n\nwrap(text : string) -> [string]" in text
