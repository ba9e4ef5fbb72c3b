"""Cuts files into pieces of about the same size, and reads the documents of a piece."""

import itertools
from collections.abc import Iterator

from configs.errors import DataError, UserError
from configs.schema import DataConfig
from data_pipeline.documents.document import Document
from data_pipeline.sources.input_files import (
    COMPRESSIONS,
    InputFile,
    Piece,
    check_unchanged,
)
from data_pipeline.sources.registry import FORMATS
from tfrecords.storage import files


def cut(file: InputFile, config: DataConfig, piece_bytes: int) -> list[Piece]:
    """Cuts a file at document boundaries into pieces of about `piece_bytes`.

    A compressed file, or one whose format has no boundaries to search for, is one
    piece.
    """
    source = FORMATS[file.format]
    if (
        file.num_bytes <= piece_bytes
        or file.compression
        or not source.is_divisible(file, config)
    ):
        return [Piece(file, 0, file.num_bytes)]
    boundaries = [0]
    with files.open_read(file.path) as stream:
        while (target := boundaries[-1] + piece_bytes) < file.num_bytes:
            stream.seek(target)
            source.skip_document(stream, config)
            boundaries.append(stream.tell())
    boundaries = [b for b in boundaries if b < file.num_bytes] + [file.num_bytes]
    return [Piece(file, start, end) for start, end in itertools.pairwise(boundaries)]


def read(piece: Piece, config: DataConfig) -> Iterator[Document]:
    """Yields the documents of a piece, also those that must be left out.

    Raises:
      DataError: the file is damaged, changed, or not what the config describes.
    """
    file = piece.file
    source = FORMATS[file.format]
    fields = {
        "labelled": f"Labelled data must have a field {config.label_field!r}",
        "completion": f"Completion data must have fields {config.prompt_field!r} and "
        f"{config.completion_field!r}",
    }
    if config.mode in fields and not source.has_fields:
        with_fields = [name for name, other in FORMATS.items() if other.has_fields]
        raise DataError(
            f"{fields[config.mode]}, and be one of "
            f"{', '.join(with_fields)}. Received: {file.path}. Convert it, or leave it "
            "out."
        )
    check_unchanged(file)
    damage: tuple[type[Exception], ...] = ()
    if file.compression:
        _, damage = COMPRESSIONS[file.compression]
    failures: tuple[type[Exception], ...] = (OSError, UserError, *damage)
    try:
        yield from source.read(piece, config)
    except failures as error:
        check_unchanged(file)  # if it was, that is the message
        if isinstance(error, UserError) or not isinstance(error, damage):
            raise
        raise DataError(
            f"{file.path} must be whole {file.compression} data. It is truncated or "
            f"damaged: {error}. Copy it again."
        ) from error
    check_unchanged(file)
