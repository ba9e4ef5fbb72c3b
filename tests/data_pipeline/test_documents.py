"""Formats, compression and encodings: files -> documents, also of damaged input."""

import bz2
import csv
import gzip
import json
import random

import pyarrow
import pyarrow.parquet
import pytest

from configs.errors import DataError
from configs.schema import DataConfig
from data_pipeline.documents import words
from data_pipeline.sources import finding, input_files, pieces

TEXTS = ["one\n\ntwo", "語" * 10, '"quoted", 1,000\tand', "three", "a\r\nb"]


def read(path, **config):
    config = DataConfig(**config)
    return [
        document
        for file in finding.find_files(str(path), config, flag="input")
        for piece in pieces.cut(file, config, 60)
        for document in pieces.read(piece, config)
    ]


def texts(documents):
    return [b"".join(d.parts).decode() for d in documents if not d.skipped]


def write_rows(path, rows):
    """Writes rows {body, kind} in the format of the file's name."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        lines = [
            json.dumps(row, ensure_ascii=len(row["body"]) % 2 == 0) for row in rows
        ]
        path.write_text("\n".join(["", *lines, ""]))
    else:
        dialect = "excel" if path.suffix == ".csv" else "excel-tab"
        with open(path, "w", newline="") as stream:
            writer = csv.DictWriter(stream, ["kind", "body"], dialect=dialect)
            writer.writeheader()
            writer.writerows(rows)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.parquet"])
def test_rows_with_text_and_label(tmp_path, name):
    rows = [{"body": text, "kind": i - 2} for i, text in enumerate(TEXTS)]
    write_rows(tmp_path / name, rows)
    fields = {"text_field": "body", "label_field": "kind"}
    assert texts(read(tmp_path, **fields)) == TEXTS
    documents = read(tmp_path, mode="labelled", **fields)
    assert [document.label for document in documents] == ["-2", "-1", "0", "1", "2"]
    with pytest.raises(DataError, match="the field 'text'"):
        read(tmp_path)


@pytest.mark.parametrize("label", [1.5, None, " ", True, 2**31, ["x"]])
def test_a_label_that_is_no_name_and_no_integer_is_refused(tmp_path, label):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x", "label": label}))
    with pytest.raises(DataError, match=r"a\.jsonl:1: .*integer of 32 bits"):
        read(tmp_path, mode="labelled")


@pytest.mark.parametrize(
    ("label", "name"), [(" so-so ", "so-so"), ("+07", "7"), ("1.0", "1.0"), (-3, "-3")]
)
def test_a_label_is_a_name_or_an_integer(tmp_path, label, name):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x", "label": label}))
    (document,) = read(tmp_path, mode="labelled")
    assert document.label == name


def test_plain_text_has_no_labels(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="Labelled data must have a field"):
        read(tmp_path, mode="labelled")


def compress(data: bytes, ending: str) -> bytes:
    if ending == ".zst":
        return pyarrow.Codec("zstd").compress(data, asbytes=True)
    return {".gz": gzip, ".bz2": bz2}[ending].compress(data)


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("document", ["line", "paragraph", "file"])
def test_compressed_text_is_the_text(tmp_path, ending, document):
    data = ("line\n" * 3 + "\nnext 語\n") * 9
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.txt").write_text(data)
    packed = tmp_path / f"a.txt{ending}"
    # In two parts, as tools that append write it.
    halves = data.encode()[:50], data.encode()[50:]
    packed.write_bytes(b"".join(compress(half, ending) for half in halves))
    for property_of in (lambda d: d.identity, lambda d: b"".join(d.parts)):
        packed_values, plain_values = (
            [property_of(d) for d in read(path, document=document) if not d.skipped]
            for path in (packed, tmp_path / "plain")
        )
        assert packed_values == plain_values


@pytest.mark.parametrize(
    ("ending", "damage"),
    [
        *((ending, "cut") for ending in (".gz", ".bz2", ".zst")),
        *((ending, "not compressed") for ending in (".gz", ".bz2", ".zst")),
        # A zstd frame need not have a checksum.
        *((ending, "changed") for ending in (".gz", ".bz2")),
    ],
)
def test_damaged_compression_is_named(tmp_path, ending, damage):
    noise = random.Random(0).randbytes(3000).hex()
    data = compress(("text " + noise + "\n").encode() * 3, ending)
    damaged = {
        "cut": data[:-20],
        "changed": data[:99] + bytes([data[99] ^ 255]) + data[100:],
        "not compressed": b"plain text\n",
    }[damage]
    (tmp_path / f"a.txt{ending}").write_bytes(damaged)
    with pytest.raises(DataError, match=rf"a\.txt{ending} must be whole"):
        texts(read(tmp_path, document="line"))


@pytest.mark.parametrize(
    "line", ['{"text": "broken', '{"txt": "x"}', "[1]", '"x"', "7"]
)
def test_a_malformed_line_is_named(tmp_path, line):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(DataError, match=r"a\.jsonl:3: each line must be"):
        read(tmp_path)


@pytest.mark.parametrize("line", ["x", "x,1,2", '"open,3'])
def test_a_malformed_row_is_named(tmp_path, line):
    (tmp_path / "a.csv").write_text(f"text,label\nfine,1\n{line}\n")
    with pytest.raises(DataError, match=r"a\.csv:3: rows must have"):
        read(tmp_path)


def test_a_damaged_parquet_file_is_named(tmp_path):
    write_rows(tmp_path / "a.parquet", [{"body": "x", "kind": 1}])
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[:-9])
    with pytest.raises(DataError, match=r"a\.parquet must be a whole"):
        read(tmp_path, text_field="body")


def test_text_that_is_not_a_string_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": 5}')
    with pytest.raises(DataError, match=r"a\.jsonl:1: .* Received: int"):
        read(tmp_path)


def test_a_line_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(input_files, "MAX_LINE_BYTES", 4 << 20)
    with open(tmp_path / "a.txt", "wb") as stream:
        stream.truncate(6 << 20)  # NULs, which take no room on the disk
    with pytest.raises(DataError, match=r"a longer one in .*a\.txt"):
        read(tmp_path, document="line")


# -- bytes that are not UTF-8, and other oddities

ODD = {
    "a.txt": b"\xef\xbb\xbffine\r\nbad \xff\xfe\r\nnul \0 here\r\n\r\nlast",
    "a.jsonl": b'\xef\xbb\xbf{"text": "fine"}\n{"text": "bad \xff\xfe"}\n'
    b'{"text": "nul \\u0000 here"}\n{"text": ""}\n{"text": "last"}',
    "a.csv": b'\xef\xbb\xbftext\nfine\nbad \xff\xfe\nnul \0 here\n" "\nlast',
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("policy", ["replace", "skip"])
def test_odd_bytes_are_repaired_or_left_out_and_counted(tmp_path, name, policy):
    (tmp_path / name).write_bytes(ODD[name])
    documents = read(tmp_path, document="line", encoding_errors=policy)
    bad = ["bad \ufffd\ufffd"] * (policy == "replace")
    assert texts(documents) == ["fine", *bad, "nul \0 here", "last"]
    skipped = [document.skipped for document in documents if document.skipped]
    assert skipped == ["invalid_utf8"] * (policy == "skip") + ["empty"]
    oddities = [name for d in documents if not d.skipped for name in d.oddities]
    assert oddities.count("byte_order_mark") == 1
    assert oddities.count("nul") == 1
    assert oddities.count("invalid_utf8") == (policy == "replace")
    expected_crlf = {"replace": 3, "skip": 2}[policy] if name == "a.txt" else 0
    assert oddities.count("crlf") == expected_crlf


@pytest.mark.parametrize("kind", ["string", "large_string"])
def test_odd_bytes_in_parquet_are_left_out_and_counted(tmp_path, kind):
    bytes_ = {"string": pyarrow.binary(), "large_string": pyarrow.large_binary()}
    values = pyarrow.array([b"fine", b"bad \xff"], bytes_[kind])
    texts = pyarrow.Array.from_buffers(
        getattr(pyarrow, kind)(), len(values), values.buffers()
    )
    table = pyarrow.Table.from_arrays([texts], ["text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    documents = read(tmp_path, encoding_errors="skip")
    assert [document.skipped for document in documents] == ["", "invalid_utf8"]


@pytest.mark.parametrize("policy", ["replace", "skip"])
def test_a_file_that_is_one_document_is_repaired_or_left_out(tmp_path, policy):
    (tmp_path / "a.txt").write_bytes(ODD["a.txt"])
    (document,) = read(tmp_path, encoding_errors=policy)
    if policy == "skip":
        assert document.skipped == "invalid_utf8"
        return
    expected = "fine\r\nbad \ufffd\ufffd\r\nnul \0 here\r\n\r\nlast"
    assert b"".join(document.parts).decode() == expected
    assert document.oddities == {"byte_order_mark", "nul", "invalid_utf8", "crlf"}


@pytest.mark.parametrize("document", ["file", "line", "paragraph"])
def test_text_that_is_not_utf8_is_named(tmp_path, document):
    (tmp_path / "a.txt").write_bytes(b"fine\nnot \xff fine\n")
    with pytest.raises(DataError, match=r"a\.txt must be UTF-8. Byte 9 is"):
        texts(read(tmp_path, document=document))


@pytest.mark.parametrize("policy", ["stop", "replace", "skip"])
def test_half_of_a_surrogate_pair_is_named_or_repaired(tmp_path, policy):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "fine \\ud83d\\ude00"}\n{"text": "x\\ud83d"}'
    )
    if policy == "stop":
        with pytest.raises(DataError, match=r"a\.jsonl:2: .* at character 1"):
            read(tmp_path)
        return
    documents = read(tmp_path, encoding_errors=policy)
    assert texts(documents) == ["fine 😀", *["x\ufffd"] * (policy == "replace")]


def test_a_large_file_comes_in_parts_cut_at_line_ends(tmp_path):
    data = " \n\n".join(["", "", "twö 語" * 9, "three"] * 100_000) + "\n"
    (tmp_path / "a.txt").write_bytes(data.encode())
    (document,) = read(tmp_path)
    parts = list(document.parts)
    assert len(parts) > 5
    assert b"".join(parts).decode() == data
    assert all(part.endswith(b"\n") for part in parts)


def test_words_are_counted_as_python_splits_them():
    spaces = [chr(c) for c in range(0x3001) if chr(c).isspace()]
    letters = [*"abé–。語🙂\u200b\u2010\ufeff", *spaces]
    generator = random.Random(0)
    for _ in range(5000):
        text = "".join(generator.choices(letters, k=generator.randrange(12)))
        assert words.count(text.encode()) == len(text.split()), repr(text)
