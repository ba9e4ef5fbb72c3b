"""Reads a piece of input, whatever its format."""

import zlib
from collections.abc import Iterator

from configs.errors import DataError, UserError
from configs.schema import DataConfig
from data_pipeline import documents, plain_text, rows
from data_pipeline.documents import Document
from data_pipeline.sources import Piece, check_unchanged

_DAMAGE = (EOFError, OSError, UserError, zlib.error)


def read(piece: Piece, config: DataConfig) -> Iterator[Document]:
    """Yields all documents of a piece, also those that must be left out.

    Raises:
      DataError: the input is damaged, or is not what the config says.
    """
    check_unchanged(piece.file)
    try:
        yield from _documents(piece, config)
    except _DAMAGE as error:
        check_unchanged(piece.file)
        if not piece.file.compression or isinstance(error, UserError):
            raise
        raise DataError(
            f"{piece.file.path} must be whole {piece.file.compression} data. It is cut "
            f"off or damaged: {error}. Copy it again."
        ) from error
    check_unchanged(piece.file)


def _documents(piece: Piece, config: DataConfig) -> Iterator[Document]:
    if piece.file.format == "jsonl":
        return rows.json_lines(piece, config)
    if piece.file.format in ("csv", "tsv"):
        return rows.table_rows(piece, config)
    if piece.file.format == "parquet":
        return rows.parquet_rows(piece, config)
    if piece.file.format == "tfds":
        return rows.tfds_examples(piece, config)
    if config.mode == "labelled":
        raise DataError(
            "Labelled data must be JSONL, CSV, TSV, Parquet or TFDS, with a field "
            f"{config.label_field!r}. Received: {piece.file.path}."
        )
    if piece.file.format == "python":
        texts = plain_text.python_documentation(piece.file.path)
        return (documents.make(text.encode(), config) for text in texts)
    if config.document == "file":
        return plain_text.whole_file(piece, config)
    return plain_text.blocks(piece, config)
