"""A document a line or row: JSONL, CSV, TSV, Parquet, TFDS -> documents."""

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
from data_pipeline import documents
from data_pipeline.documents import Document
from data_pipeline.sources import Piece
from tfrecords.storage import files

_SURROGATE = re.compile("[\ud800-\udfff]")


def json_lines(piece: Piece, config: DataConfig) -> Iterator[Document]:
    for offset, line in documents.lines(piece):
        if not line.strip():
            continue
        text, noticed = documents.valid_utf8(line, piece, offset, config)
        try:
            values = json.loads(text.decode())
            values[config.text_field]  # so that a list or a number is refused here
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise DataError(
                f"{documents.place_of(piece, offset)}: each line must be a JSON object "
                f"with the field {config.text_field!r}. Received: {error!r}. Mend the "
                "line, or set `--config.data.text_field`."
            ) from error
        place = functools.partial(documents.place_of, piece, offset)
        yield _from_fields(values, place, config, noticed)


def table_rows(piece: Piece, config: DataConfig) -> Iterator[Document]:
    """CSV with RFC 4180's quotes; TSV the same, with tabs."""
    csv.field_size_limit(documents.MAX_LINE_BYTES)
    delimiter = "\t" if piece.file.format == "tsv" else ","
    offset = piece.start  # of the line that was read last
    found_in_row: set[str] = set()

    def text_lines(of: Piece) -> Iterator[str]:
        nonlocal offset
        for offset, line in documents.lines(of):
            text, odd = documents.valid_utf8(line, of, offset, config)
            found_in_row.update(odd)
            yield text.decode()

    def rows(of: Piece) -> Iterator[list[str]]:
        return csv.reader(text_lines(of), delimiter=delimiter, strict=True)

    try:
        header = next(rows(dataclasses.replace(piece, start=0)), [])
        found = rows(piece)
        if piece.start == 0:
            next(found, None)
            found_in_row &= {documents.BYTE_ORDER_MARK}  # the header is no document
        else:
            found_in_row.clear()  # of the header, which another piece counts
        if len(set(header)) < len(header):
            raise csv.Error("two columns of one name")
        for row in filter(None, found):
            if len(row) != len(header):
                raise csv.Error(f"{len(row)} fields, {len(header)} in the first line")
            values = dict(zip(header, row, strict=True))
            place = functools.partial(documents.place_of, piece, offset)
            yield _from_fields(values, place, config, frozenset(found_in_row))
            found_in_row.clear()
    except csv.Error as error:
        raise DataError(
            f"{documents.place_of(piece, offset)}: rows must have the fields of the "
            f"first line, quoted where they hold {delimiter!r}, quotes or line ends. "
            f"Received: {error}. Mend the row."
        ) from error


def parquet_rows(piece: Piece, config: DataConfig) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    with files.open_read(piece.file.path) as stream:
        try:
            table = pyarrow.parquet.ParquetFile(stream)
            columns = _columns(config, table.schema_arrow.names, piece.file.path)
            row = 0
            for batch in table.iter_batches(batch_size=1024, columns=columns):
                # Strings as bytes: they may be of any encoding.
                fields = [
                    column.cast(pyarrow.large_binary())
                    if str(column.type) in ("string", "large_string")
                    else column
                    for column in batch.columns
                ]
                table_ = pyarrow.RecordBatch.from_arrays(fields, batch.schema.names)
                for values in table_.to_pylist():
                    row += 1
                    place = f"{piece.file.path}, row {row}".__str__
                    yield _from_fields(values, place, config)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(
                f"{piece.file.path} must be a whole Parquet file. Reading said: "
                f"{str(error).splitlines()[0]}"
            ) from error


def tfds_examples(piece: Piece, config: DataConfig) -> Iterator[Document]:
    import tensorflow_datasets as tfds

    folder, name = os.path.split(piece.file.path)
    builder = tfds.builder_from_directory(folder)
    (split,) = [s for s in builder.info.splits.values() if name in s.filenames]
    index = sorted(split.filenames).index(name)
    start = sum(split.shard_lengths[:index])
    part = tfds.core.ReadInstruction(
        split.name, from_=start, to=start + split.shard_lengths[index], unit="abs"
    )
    columns = _columns(config, builder.info.features, folder)
    wanted = tfds.decode.PartialDecoding(dict.fromkeys(columns, True))
    examples = builder.as_dataset(split=part, shuffle_files=False, decoders=wanted)
    for number, example in enumerate(tfds.as_numpy(examples)):
        place = f"{piece.file.path}, example {number}".__str__
        yield _from_fields(example, place, config)


def _columns(config: DataConfig, known: Iterable[str], path: str) -> list[str]:
    """Returns the columns to read; DataError where one is not among those known."""
    columns = {"text_field": config.text_field}
    if config.mode == "labelled":
        columns["label_field"] = config.label_field
    for field, column in columns.items():
        if column not in known:
            raise DataError(
                f"{path} must have the field {column!r}. The fields are: "
                f"{', '.join(known)}. Set `--config.data.{field}`."
            )
    return list(columns.values())


def _from_fields(
    values: dict[str, Any],
    place: Callable[[], str],
    config: DataConfig,
    noticed: Set[str] = documents.NOTHING,
) -> Document:
    """Makes a document of a row; `place()` names it for a message."""
    text = values.get(config.text_field)
    if isinstance(text, bytes):  # TFDS has strings as bytes of any encoding
        text = text.decode("utf-8", "surrogateescape")
    if not isinstance(text, str):
        raise DataError(
            f"{place()}: the field {config.text_field!r} must be a string. Received: "
            f"{type(text).__name__}. The fields are: {', '.join(values)}. Set "
            "`--config.data.text_field`."
        )
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        if config.encoding_errors == "stop":
            raise DataError(
                f"{place()}: the field {config.text_field!r} must be Unicode text. It "
                "holds half of a surrogate pair, or a byte that is not UTF-8, at "
                f"character {error.start}. Mend it, or set "
                "`--config.data.encoding_errors` to replace or skip."
            ) from error
        encoded = _SURROGATE.sub("\ufffd", text).encode()
        noticed |= {documents.INVALID_UTF8}
    label = _label(values, place, config) if config.mode == "labelled" else 0
    return documents.make(encoded, config, label=label, noticed=noticed)


def _label(values: dict[str, Any], place: Callable[[], str], config: DataConfig) -> int:
    value = values.get(config.label_field)
    try:
        text = isinstance(value, (str, bytes))
        if isinstance(value, bool):
            raise TypeError
        label = int(value) if text else operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        label = 1 << 31
    if -(1 << 31) <= label < 1 << 31:
        return label
    raise DataError(
        f"{place()}: the field {config.label_field!r} must be an integer of 32 bits. "
        f"Received: {value!r}. The fields are: {', '.join(values)}. Set "
        "`--config.data.label_field`."
    )
