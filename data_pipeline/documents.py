"""Reads the documents of a piece of input: text, JSONL, CSV, TSV, Parquet, TFDS.

Reading streams: memory is bounded by the longest line or row, not by the file. What is
not as it should be is an error, or is noticed and counted, as the config says.
"""

import ast
import bz2
import csv
import dataclasses
import functools
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Set
from typing import IO, Any

from configs.schema import DataConfig
from data_pipeline import storage
from data_pipeline.sources import InputError, InputFile, Piece, check_unchanged

MAX_LINE_BYTES = 64 << 20
# A text file that is one document is read in groups of lines of this size.
_GROUP_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_DAMAGE = (EOFError, OSError, zlib.error)

# What the manifest counts: documents that were repaired, that hold something odd which
# is kept, and that were left out.
BYTE_ORDER_MARK, INVALID_UTF8 = "byte_order_mark", "invalid_utf8"
CRLF, NUL = "crlf", "nul"
REPAIRED, KEPT = {BYTE_ORDER_MARK, INVALID_UTF8}, {CRLF, NUL}
EMPTY = "empty"

_NOTHING: Set[str] = frozenset()
_SURROGATE = re.compile("[\ud800-\udfff]")
_STARTS_WITH_WORD = re.compile(rb"\s*[!-~]")


@dataclasses.dataclass(slots=True)
class Document:
    """One document.

    Attributes:
      parts: its text, UTF-8, in one part; or several, cut at line ends, of a large one.
      file_hash: of a file that is one document, the SHA-256 of the file.
      label: of labelled data, otherwise 0.
      noticed: of REPAIRED and KEPT; complete when the parts were read.
      skipped: why the document must be left out, or "".
    """

    parts: tuple[bytes] | Iterator[bytes]
    file_hash: bytes = b""
    label: int = 0
    noticed: Set[str] = _NOTHING
    skipped: str = ""

    @property
    def identity(self) -> bytes:
        """SHA-256 of the document: the same text is the same document."""
        if self.file_hash:
            return self.file_hash
        (text,) = self.parts
        return hashlib.sha256(text).digest()


def read(piece: Piece, config: DataConfig) -> Iterator[Document]:
    """Yields all documents of a piece, also those that must be left out.

    Raises:
      InputError: the input is damaged, or is not what the config says.
    """
    check_unchanged(piece.file)
    try:
        yield from _documents(piece, config)
    except _DAMAGE as error:
        check_unchanged(piece.file)
        if not piece.file.compression:
            raise
        raise InputError(
            f"{piece.file.path} must be whole {piece.file.compression} data. It is cut "
            f"off or damaged: {error}. Copy it again."
        ) from error
    check_unchanged(piece.file)


def _documents(piece: Piece, config: DataConfig) -> Iterator[Document]:
    if piece.file.format == "jsonl":
        return _json_lines(piece, config)
    if piece.file.format in ("csv", "tsv"):
        return _table_rows(piece, config)
    if piece.file.format == "parquet":
        return _parquet_rows(piece, config)
    if piece.file.format == "tfds":
        return _tfds_examples(piece, config)
    if piece.file.format == "python":
        texts = _python_documentation(piece.file.path)
        return (_document(text.encode(), config) for text in texts)
    if config.mode == "labelled":
        raise InputError(
            "Labelled data must be JSONL, CSV, TSV, Parquet or TFDS, with a field "
            f"{config.label_field!r}. Received: {piece.file.path}."
        )
    if config.document == "file":
        return _whole_file(piece, config)
    return _text_blocks(piece, config)


# -- plain text


def _text_blocks(piece: Piece, config: DataConfig) -> Iterator[Document]:
    """A line, or the lines between blank ones, is a document."""
    if config.document == "line":
        yield from _text_lines(piece, config)
        return
    block: list[bytes] = []
    start, size = piece.start, 0
    for offset, line in _lines(piece):
        if line.strip():
            start = start if block else offset
            size = size + len(line) if block else len(line)
            _check_size(size, piece.file)
            block.append(line)
        elif block:
            yield _text_block(b"".join(block), start, piece, config)
            block = []
    if block:
        yield _text_block(b"".join(block), start, piece, config)


def _text_lines(piece: Piece, config: DataConfig) -> Iterator[Document]:
    for offset, group in _line_groups(piece):
        text, noticed = _utf8(group, piece, offset, config)
        if not noticed and _is_clean(text):  # almost always, and much faster
            for line in text.removesuffix(b"\n").split(b"\n"):
                yield Document((line,), skipped=EMPTY if _is_blank(line) else "")
            continue
        for line in io.BytesIO(group):
            yield _text_block(line, offset, piece, config)
            offset += len(line)


def _text_block(data: bytes, offset: int, piece: Piece, config: DataConfig) -> Document:
    text, noticed = _utf8(data, piece, offset, config)
    return _document(text, config, end=b"\n", noticed=noticed)


def _whole_file(piece: Piece, config: DataConfig) -> Iterator[Document]:
    """The file is one document, read in groups of lines."""
    file_hash, is_utf8 = bytes.fromhex(piece.file.sha256), True
    if piece.file.compression or config.encoding_errors == "skip":
        file_hash, is_utf8 = _scan(piece)
    document = Document((b"",), file_hash)
    if not is_utf8 and config.encoding_errors == "skip":
        document.skipped = INVALID_UTF8
        yield document
        return

    def parts() -> Iterator[bytes]:
        for offset, group in _line_groups(piece):
            text, noticed = _utf8(group, piece, offset, config)
            part = _document(text, config, noticed=noticed)
            document.noticed |= part.noticed
            yield from part.parts

    text = parts()
    blank = []  # what stands before the first word
    for part in text:
        blank.append(part)
        if not _is_blank(part):
            document.parts = itertools.chain(blank, text)
            yield document
            return
    document.skipped = EMPTY
    yield document


def _line_groups(piece: Piece) -> Iterator[tuple[int, bytes]]:
    """Yields (offset in the decompressed file, some lines with their ends)."""
    with _open(piece.file) as stream:
        if piece.start:
            stream.seek(piece.start)
        offset, size = piece.start, _GROUP_BYTES
        while True:
            # Of a compressed file the end is not known beforehand.
            if not piece.file.compression:
                size = min(size, piece.end - offset)
            group = stream.read(size)
            if not group:
                return
            if not group.endswith(b"\n"):
                rest = stream.readline(MAX_LINE_BYTES + 1)
                _check_size(len(rest), piece.file)
                group += rest
            yield offset, group
            offset += len(group)


def _lines(piece: Piece) -> Iterator[tuple[int, bytes]]:
    """Yields (offset in the decompressed file, line with its end)."""
    for offset, group in _line_groups(piece):
        for line in io.BytesIO(group):
            yield offset, line
            offset += len(line)


def _scan(piece: Piece) -> tuple[bytes, bool]:
    """Returns a file's hash and whether it is UTF-8, by reading it once more."""
    digest, is_utf8 = hashlib.sha256(), True
    for _, group in _line_groups(piece):
        digest.update(group)
        try:
            group.decode()
        except UnicodeDecodeError:
            is_utf8 = False
    return digest.digest(), is_utf8


# -- a document a line or row


def _json_lines(piece: Piece, config: DataConfig) -> Iterator[Document]:
    for offset, line in _lines(piece):
        if not line.strip():
            continue
        text, noticed = _utf8(line, piece, offset, config)
        try:
            values = json.loads(text.decode())
            values[config.text_field]  # so that a list or a number is refused here
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise InputError(
                f"{_place(piece, offset)}: each line must be a JSON object with the "
                f"field {config.text_field!r}. Received: {error!r}. Mend the line, or "
                "set `--config.data.text_field`."
            ) from error
        place = functools.partial(_place, piece, offset)
        yield _from_fields(values, place, config, noticed)


def _table_rows(piece: Piece, config: DataConfig) -> Iterator[Document]:
    """CSV with RFC 4180's quotes; TSV the same, with tabs."""
    csv.field_size_limit(MAX_LINE_BYTES)
    delimiter = "\t" if piece.file.format == "tsv" else ","
    offset = piece.start  # of the line that was read last
    found_in_row: set[str] = set()

    def lines(of: Piece) -> Iterator[str]:
        nonlocal offset
        for offset, line in _lines(of):
            text, odd = _utf8(line, of, offset, config)
            found_in_row.update(odd)
            yield text.decode()

    def rows(of: Piece) -> Iterator[list[str]]:
        return csv.reader(lines(of), delimiter=delimiter, strict=True)

    try:
        header = next(rows(dataclasses.replace(piece, start=0)), [])
        found = rows(piece)
        if piece.start == 0:
            next(found, None)
        else:
            found_in_row.clear()  # of the header, which another piece counts
        for row in filter(None, found):
            if len(row) != len(header):
                raise csv.Error(f"{len(row)} fields, {len(header)} in the first line")
            values = dict(zip(header, row, strict=True))
            place = functools.partial(_place, piece, offset)
            yield _from_fields(values, place, config, frozenset(found_in_row))
            found_in_row.clear()
    except csv.Error as error:
        raise InputError(
            f"{_place(piece, offset)}: rows must have the fields of the first line, "
            f"quoted where they hold {delimiter!r}, quotes or line ends. Received: "
            f"{error}. Mend the row."
        ) from error


def _parquet_rows(piece: Piece, config: DataConfig) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    with storage.open_read(piece.file.path) as stream:
        try:
            table = pyarrow.parquet.ParquetFile(stream)
            columns = _columns(config)
            row = 0
            for batch in table.iter_batches(batch_size=1024, columns=columns):
                for values in batch.to_pylist():
                    row += 1
                    place = f"{piece.file.path}, row {row}".__str__
                    yield _from_fields(values, place, config)
        except pyarrow.ArrowException as error:
            raise InputError(
                f"{piece.file.path} must be a whole Parquet file. Reading said: "
                f"{str(error).splitlines()[0]}"
            ) from error


def _tfds_examples(piece: Piece, config: DataConfig) -> Iterator[Document]:
    import tensorflow_datasets as tfds

    folder, name = os.path.split(piece.file.path)
    builder = tfds.builder_from_directory(folder)
    (split,) = [s for s in builder.info.splits.values() if name in s.filenames]
    index = sorted(split.filenames).index(name)
    start = sum(split.shard_lengths[:index])
    part = tfds.core.ReadInstruction(
        split.name, from_=start, to=start + split.shard_lengths[index], unit="abs"
    )
    missing = set(_columns(config)) - set(builder.info.features)
    if missing:
        raise InputError(
            f"The dataset in {folder} must have the feature {missing.pop()!r}. It has: "
            f"{', '.join(builder.info.features)}. Set `--config.data.text_field`."
        )
    wanted = tfds.decode.PartialDecoding(dict.fromkeys(_columns(config), True))
    examples = builder.as_dataset(split=part, shuffle_files=False, decoders=wanted)
    for number, example in enumerate(tfds.as_numpy(examples)):
        place = f"{piece.file.path}, example {number}".__str__
        yield _from_fields(example, place, config)


def _columns(config: DataConfig) -> list[str]:
    return [config.text_field] + [config.label_field] * (config.mode == "labelled")


def _from_fields(
    values: dict[str, Any],
    place: Callable[[], str],
    config: DataConfig,
    noticed: Set[str] = _NOTHING,
) -> Document:
    """Makes a document of a row; `place()` names it for a message."""
    text = values.get(config.text_field)
    if isinstance(text, bytes):  # TFDS has strings as bytes of any encoding
        text = text.decode("utf-8", "surrogateescape")
    if not isinstance(text, str):
        raise InputError(
            f"{place()}: the field {config.text_field!r} must be a string. Received: "
            f"{type(text).__name__}. The fields are: {', '.join(values)}. Set "
            "`--config.data.text_field`."
        )
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        if config.encoding_errors == "stop":
            raise InputError(
                f"{place()}: the field {config.text_field!r} must be Unicode text. It "
                "holds half of a surrogate pair, or a byte that is not UTF-8, at "
                f"character {error.start}. Mend it, or set "
                "`--config.data.encoding_errors` to replace or skip."
            ) from error
        encoded = _SURROGATE.sub("\ufffd", text).encode()
        noticed |= {INVALID_UTF8}
    label = _label(values, place, config) if config.mode == "labelled" else 0
    return _document(encoded, config, label=label, noticed=noticed)


def _label(values: dict[str, Any], place: Callable[[], str], config: DataConfig) -> int:
    value = values.get(config.label_field)
    try:
        if isinstance(value, (bool, float)):
            raise TypeError
        label = int(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        label = 1 << 31
    if -(1 << 31) <= label < 1 << 31:
        return label
    raise InputError(
        f"{place()}: the field {config.label_field!r} must be an integer of 32 bits. "
        f"Received: {value!r}. The fields are: {', '.join(values)}. Set "
        "`--config.data.label_field`."
    )


# -- what all formats share


def _document(
    text: bytes,
    config: DataConfig,
    *,
    label: int = 0,
    end: bytes = b"",
    noticed: Set[str] = _NOTHING,
) -> Document:
    """Notices what a text holds; takes `end`, or CRLF for LF, off its end."""
    if b"\r" in text and b"\r\n" in text:  # the first is much faster
        noticed |= {CRLF}
        if end and text.endswith(b"\r\n"):
            end = b"\r\n"
    if b"\0" in text:
        noticed |= {NUL}
    text = text.removesuffix(end)
    skipped = EMPTY if _is_blank(text) else ""
    if INVALID_UTF8 in noticed and config.encoding_errors == "skip":
        skipped = INVALID_UTF8
    return Document((text,), b"", label, noticed, skipped)


def _is_clean(text: bytes) -> bool:
    """Whether `_document` would notice nothing, nor in any line of it."""
    return b"\r" not in text and b"\0" not in text


def _is_blank(text: bytes) -> bool:
    """Whether a text is nothing but white space, also that of Unicode."""
    if _STARTS_WITH_WORD.match(text):
        return False
    return not text.strip() or text.decode().isspace()


def _utf8(
    data: bytes, piece: Piece, offset: int, config: DataConfig
) -> tuple[bytes, Set[str]]:
    """Returns valid UTF-8, and what had to be changed in bytes of a file for that."""
    noticed = _NOTHING
    if offset == 0 and data.startswith(_BYTE_ORDER_MARK):
        data = data.removeprefix(_BYTE_ORDER_MARK)
        offset = len(_BYTE_ORDER_MARK)
        noticed |= {BYTE_ORDER_MARK}
    try:
        data.decode()
    except UnicodeDecodeError as error:
        if config.encoding_errors == "stop":
            raise InputError(
                f"{piece.file.path} must be UTF-8. Byte {offset + error.start} is not: "
                f"{error.reason}. Convert the file (iconv -f … -t UTF-8), or set "
                "`--config.data.encoding_errors` to replace or skip."
            ) from error
        data = data.decode("utf-8", "replace").encode()
        noticed |= {INVALID_UTF8}
    return data, noticed


def _open(file: InputFile) -> IO[bytes]:
    stream = storage.open_read(file.path)
    if file.compression == ".gz":
        return io.BufferedReader(gzip.open(stream))
    if file.compression == ".bz2":
        return bz2.open(stream)
    if file.compression == ".zst":
        import pyarrow  # zstandard's own reader takes a file that was cut for whole

        return io.BufferedReader(pyarrow.input_stream(stream, compression="zstd"))
    return stream


def _check_size(num_bytes: int, file: InputFile) -> None:
    if num_bytes > MAX_LINE_BYTES:
        raise InputError(
            f"A line, row or paragraph must not exceed {MAX_LINE_BYTES >> 20} MiB. "
            f"{file.path} has a longer one. Break it."
        )


def _place(piece: Piece, offset: int) -> str:
    """Returns "FILE:LINE" of an offset in the decompressed file."""
    with _open(piece.file) as stream:
        number = 1
        while offset > 0 and (block := stream.read(min(offset, 1 << 20))):
            number += block.count(b"\n")
            offset -= len(block)
    return f"{piece.file.path}:{number}"


# -- the text inside Python


def _python_documentation(path: str) -> list[str]:
    """Returns pydoc's topics, a document each, or the docstrings of one module."""
    with open(path, encoding="utf-8") as stream:
        tree = ast.parse(stream.read())
    if path.endswith(os.path.join("pydoc_data", "topics.py")):
        assignments = [node for node in tree.body if isinstance(node, ast.Assign)]
        return list(ast.literal_eval(assignments[0].value).values())
    return ["\n\n\n".join(_docstrings(tree, ""))]


def _docstrings(node: ast.AST, prefix: str) -> Iterator[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if isinstance(node, documented) and (docstring := ast.get_docstring(node)):
        yield f"{prefix}\n\n{docstring}" if prefix else docstring
    for child in ast.iter_child_nodes(node):
        if isinstance(child, documented):
            name = getattr(child, "name", "")
            yield from _docstrings(child, f"{prefix}.{name}" if prefix else name)
