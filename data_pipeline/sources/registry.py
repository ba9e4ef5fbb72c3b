"""All sources of text, one line of `FORMATS` each.

A source is a function, (piece, config) -> documents. It streams: a line or a row bounds
its memory, not the file. (A compression is one line of `input_files.COMPRESSIONS`.)
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import BinaryIO

from configs.schema import DataConfig
from data_pipeline.documents.document import Document
from data_pipeline.sources import (
    hugging_face,
    plain_text,
    python_docs,
    rows,
    tfds,
)
from data_pipeline.sources.input_files import InputFile, Piece


def _skip_line(stream: BinaryIO, config: DataConfig) -> None:
    del config
    stream.readline()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """How one kind of file is recognized, divided and read.

    Attributes:
      read: (piece, config) -> the documents of the piece, also those to leave out.
      endings: of the names of such files, without that of a compression.
      prefix: of a name in `--input` that stands for such files, if it ends in a colon,
        as "tfds:"; otherwise the whole name.
      list_files: (name with the prefix, config) -> the paths of its files.
      has_fields: whether documents are rows of named fields, and can have labels.
      is_divisible: (file, config) -> whether pieces of the file can be read alone.
      skip_document: (stream, config) -> None. Moves the stream of a divisible file from
        inside a document to where the next one begins.
    """

    read: Callable[[Piece, DataConfig], Iterator[Document]]
    endings: tuple[str, ...] = ()
    prefix: str = ""
    list_files: Callable[[str, DataConfig], list[str]] | None = None
    has_fields: bool = False
    is_divisible: Callable[[InputFile, DataConfig], bool] = lambda *_: False
    skip_document: Callable[[BinaryIO, DataConfig], None] = _skip_line


def _table(ending: str, delimiter: str) -> Format:
    return Format(
        read=functools.partial(rows.read_table, delimiter=delimiter),
        endings=(ending,),
        has_fields=True,
        is_divisible=rows.is_divisible_table,
    )


PLAIN_TEXT = "text"  # also files with an ending that no format has
FORMATS = {
    PLAIN_TEXT: Format(
        read=plain_text.read,
        is_divisible=plain_text.is_divisible,
        skip_document=plain_text.skip_document,
    ),
    "jsonl": Format(
        read=rows.read_json_lines,
        endings=(".jsonl", ".ndjson"),
        has_fields=True,
        is_divisible=lambda *_: True,
    ),
    "csv": _table(".csv", ","),
    "tsv": _table(".tsv", "\t"),
    "parquet": Format(read=rows.read_parquet, endings=(".parquet",), has_fields=True),
    "arrow": Format(read=rows.read_arrow, endings=(".arrow",), has_fields=True),
    "hf": Format(
        read=rows.read_arrow,
        prefix="hf:",
        list_files=hugging_face.list_files,
        has_fields=True,
    ),
    "tfds": Format(
        read=tfds.read, prefix="tfds:", list_files=tfds.list_files, has_fields=True
    ),
    "python": Format(
        read=python_docs.read,
        prefix="builtin:python_docs",
        list_files=python_docs.list_files,
    ),
}
