"""Formats in which a document is a line or row of named fields: JSONL, Parquet, …."""

import contextlib
import csv
import dataclasses
import functools
import json
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Set
from typing import Any

from configs.errors import DataError
from configs.schema import DataConfig
from data_pipeline.documents import document
from data_pipeline.documents.document import Document
from data_pipeline.sources import conversations, input_files
from data_pipeline.sources.input_files import InputFile, Piece
from tfrecords.storage import files

# How a file of Arrow begins, and how a stream of Arrow ends.
_ARROW_FILE = b"ARROW1"
_ARROW_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
_BATCH_ROWS = 1024
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_json_lines(piece: Piece, config: DataConfig) -> Iterator[Document]:
    """Yields the documents of JSONL: each line is an object."""
    for offset, line in input_files.lines(piece):
        if not line.strip():
            continue
        text, oddities = document.repair_utf8(line, piece.file.path, offset, config)
        name_row = functools.partial(input_files.line_name, piece, offset)
        try:
            values = json.loads(text.decode())
            for field in text_fields(config).values():
                if config.null_text == "skip" and isinstance(values, dict):
                    values.setdefault(field, None)
                values[field]  # refuses a list or a number
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            names = text_fields(config)
            raise DataError(
                f"{name_row()}: each line must be a JSON object with the field "
                f"{' and '.join(map(repr, names.values()))}. Received: {error!r}. "
                "Correct the line, or set "
                f"`--config.data.{'` and `--config.data.'.join(names)}`, or leave "
                "lines without the field out by `--config.data.null_text=skip`."
            ) from error
        yield to_document(values, name_row, config, oddities)


def is_divisible_table(file: InputFile, config: DataConfig) -> bool:
    """Returns whether each line is a row: a quoted field may hold line ends."""
    del config
    with files.open_read(file.path) as stream:
        blocks = iter(lambda: stream.read(1 << 20), b"")
        return not any(b'"' in block for block in blocks)


def read_table(
    piece: Piece, config: DataConfig, *, delimiter: str
) -> Iterator[Document]:
    """Yields the documents of CSV or TSV, quoted as in RFC 4180, with a header."""
    csv.field_size_limit(input_files.MAX_LINE_BYTES)
    offset = piece.start  # of the line that was read last
    oddities: set[str] = set()  # of the row that is being read

    def read_rows(part: Piece) -> Iterator[list[str]]:
        def decoded_lines() -> Iterator[str]:
            nonlocal offset
            for offset, line in input_files.lines(part):
                text, odd = document.repair_utf8(line, part.file.path, offset, config)
                oddities.update(odd)
                yield text.decode()

        return csv.reader(decoded_lines(), delimiter=delimiter, strict=True)

    try:
        header = next(read_rows(dataclasses.replace(piece, start=0)), [])
        table = read_rows(piece)
        if piece.start == 0:
            next(table, None)
            oddities &= {document.BYTE_ORDER_MARK}  # the header is not a document
        else:
            oddities.clear()  # the first piece counts those of the header
        if len(set(header)) < len(header):
            raise csv.Error("two columns with the same name")
        for row in filter(None, table):
            if len(row) != len(header):
                raise csv.Error(f"{len(row)} fields, {len(header)} in the first line")
            values = dict(zip(header, row, strict=True))
            name_row = functools.partial(input_files.line_name, piece, offset)
            yield to_document(values, name_row, config, frozenset(oddities))
            oddities.clear()
    except csv.Error as error:
        raise DataError(
            f"{input_files.line_name(piece, offset)}: rows must have the fields of the "
            f"first line, quoted if they hold {delimiter!r}, quotes or line ends. "
            f"Received: {error}. Correct the row."
        ) from error


def read_parquet(piece: Piece, config: DataConfig) -> Iterator[Document]:
    """Yields the documents of Parquet."""
    import pyarrow
    import pyarrow.parquet

    path = piece.file.path
    with files.open_read(path) as stream, _arrow_errors(path, "Parquet"):
        table = pyarrow.parquet.ParquetFile(stream)
        names = columns(config, table.schema_arrow.names, path)
        batches = table.iter_batches(batch_size=_BATCH_ROWS, columns=names)
        yield from _documents(batches, path, config)


def read_arrow(piece: Piece, config: DataConfig) -> Iterator[Document]:
    """Yields the documents of Arrow: a stream, as `datasets` writes it, or a file.

    The batches of rows in which it was written bound the memory.
    """
    import pyarrow

    path = piece.file.path
    with files.open_read(path) as stream, _arrow_errors(path, "Arrow"):
        is_file = stream.read(len(_ARROW_FILE)) == _ARROW_FILE
        stream.seek(-len(_ARROW_STREAM_END), os.SEEK_END)
        if not is_file and stream.read() != _ARROW_STREAM_END:
            # Without it, a reader takes a truncated stream for a whole one.
            raise pyarrow.ArrowInvalid("no mark of its end.")
        stream.seek(0)
        if is_file:
            reader = pyarrow.ipc.open_file(stream)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        else:
            batches = reader = pyarrow.ipc.open_stream(stream)
        names = columns(config, reader.schema.names, path)
        parts = (
            batch.select(names).slice(start, _BATCH_ROWS)
            for batch in batches
            for start in range(0, batch.num_rows, _BATCH_ROWS)
        )
        yield from _documents(parts, path, config)


@contextlib.contextmanager
def _arrow_errors(path: str, kind: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} must be a whole {kind} file, of texts in UTF-8. Received: "
            f"{str(error).splitlines()[0]} Copy it again."
        ) from error


def _documents(
    batches: Iterable[Any], path: str, config: DataConfig
) -> Iterator[Document]:
    """Yields the documents of pyarrow's record batches."""
    import pyarrow

    number = 0
    for batch in batches:
        # Strings are read as bytes: files hold some that are not UTF-8.
        fields = [
            column.cast(pyarrow.large_binary())
            if str(column.type) in ("string", "large_string")
            else column
            for column in batch.columns
        ]
        binary = pyarrow.RecordBatch.from_arrays(fields, batch.schema.names)
        for values in binary.to_pylist():
            number += 1
            name_row = f"{path}, row {number}".__str__
            yield to_document(values, name_row, config)


def columns(config: DataConfig, known: Iterable[str], path: str) -> list[str]:
    """Returns the columns to read.

    Raises:
      DataError: the file has no such column.
    """
    names = text_fields(config)
    if config.mode == "labelled":
        names["label_field"] = config.label_field
    for field, column in names.items():
        if column not in known:
            raise DataError(
                f"{path} must have the field {column!r}. The fields are: "
                f"{', '.join(known)}. Set `--config.data.{field}`."
            )
    return list(names.values())


def text_fields(config: DataConfig) -> dict[str, str]:
    """Returns the fields whose text is read, by the config's names of them."""
    if config.messages_field:
        return {"messages_field": config.messages_field}
    if config.mode == "completion":
        names = ("prompt_field", "completion_field")
        return {name: getattr(config, name) for name in names}
    return {"text_field": config.text_field}


def to_document(
    values: dict[str, Any],
    name_row: Callable[[], str],
    config: DataConfig,
    oddities: Set[str] = document.NO_ODDITIES,
) -> Document:
    """Makes a document of a row.

    Args:
      values: the fields by name.
      name_row: returns "FILE:LINE" or the like. A function, because only an error
        message needs it.
      config: names the fields of text and label.
      oddities: of the row, from `document.repair_utf8`.
    """
    texts = []
    for name, field in text_fields(config).items():
        is_left_out = values.get(field) is None and config.null_text == "skip"
        if config.messages_field and not is_left_out:
            values[field] = conversations.to_text(values.get(field), name_row, field)
        text, odd = _encoded(values, name, field, name_row, config)
        if text is None:
            return Document((b"",), oddities=oddities, skipped=document.NULL)
        oddities |= odd
        texts.append(text)
    label = _label(values, name_row, config) if config.mode == "labelled" else ""
    made = document.make(b"".join(texts), config, label=label, oddities=oddities)
    if config.mode == "completion" and not made.skipped:
        if not all(texts):
            raise DataError(
                f"{name_row()}: prompt and completion must hold text. Received: "
                f"{len(texts[0])} and {len(texts[1])} bytes. Correct the row, or leave "
                "it out."
            )
        made.num_prompt_bytes = len(texts[0])
    return made


def _encoded(
    values: dict[str, Any],
    name: str,
    field: str,
    name_row: Callable[[], str],
    config: DataConfig,
) -> tuple[bytes | None, Set[str]]:
    """Returns the text of a field as UTF-8, and what is odd about it.

    None: there is none, and the row is to be left out.
    """
    text = values.get(field)
    if text is None and config.null_text == "skip":
        return None, document.NO_ODDITIES
    if isinstance(text, bytes):  # TFDS stores strings as bytes of any encoding
        text = text.decode("utf-8", "surrogateescape")
    if not isinstance(text, str):
        raise DataError(
            f"{name_row()}: the field {field!r} must be a string. "
            f"Received: {type(text).__name__}. The fields are: {', '.join(values)}. "
            f"Set `--config.data.{name}`; `--config.data.null_text=skip` leaves out "
            "rows whose text is null."
        )
    try:
        return text.encode(), document.NO_ODDITIES
    except UnicodeEncodeError as error:
        if config.encoding_errors == "stop":
            raise DataError(
                f"{name_row()}: the field {field!r} must be Unicode text. "
                "Received: half of a surrogate pair, or a byte that is not UTF-8, at "
                f"character {error.start}. Correct it, or set "
                "`--config.data.encoding_errors` to replace or skip."
            ) from error
        replaced = _SURROGATE.sub("\ufffd", text).encode()
        return replaced, frozenset({document.INVALID_UTF8})


def _label(
    values: dict[str, Any], name_row: Callable[[], str], config: DataConfig
) -> str:
    """Returns a row's label: an integer in decimal digits, or a name."""
    value = values.get(config.label_field)
    if isinstance(value, bytes):  # of Parquet and TFDS
        value = value.decode("utf-8", "replace")
    if isinstance(value, str) and value.strip():
        name = value.strip()
        return str(int(name)) if document.is_integer(name) else name
    try:
        label = str(None if isinstance(value, bool) else operator.index(value))  # type: ignore[arg-type]
    except TypeError:
        label = ""
    if document.is_integer(label):
        return label
    raise DataError(
        f"{name_row()}: the field {config.label_field!r} must be a name, or an integer "
        f"of 32 bits. Received: {value!r}. The fields are: {', '.join(values)}. "
        "Correct the row, or set `--config.data.label_field`."
    )
