"""A chunk: the documents that a worker processes at once.

A chunk is a work item. It does not depend on other chunks, and its size does not depend
on the number of workers.
"""

import dataclasses
from collections.abc import Iterator

from configs.schema import DataConfig
from data_pipeline import finished_work
from data_pipeline.documents.document import Document
from data_pipeline.sources import pieces as pieces_
from data_pipeline.sources.input_files import Piece

SPLITS = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Consecutive pieces of the input."""

    name: str  # of the files that are made of the chunk
    pieces: tuple[Piece, ...]
    validation_fraction: float  # share of the documents; 0 or 1: all are of one split
    config: DataConfig  # without the names of the input and the tokenizer

    @property
    def num_bytes(self) -> int:
        """Size of the pieces as stored."""
        return sum(piece.num_bytes for piece in self.pieces)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that the documents depend on: contents, not paths."""
        return finished_work.fingerprint(
            [[p.file.sha256, p.file.format, p.start, p.end] for p in self.pieces],
            self.validation_fraction,
            dataclasses.asdict(self.config),
        )

    def documents(self) -> Iterator[Document]:
        """Yields all documents, also those that must be left out."""
        for piece in self.pieces:
            yield from pieces_.read(piece, self.config)


def group(pieces: list[Piece], chunk_bytes: int) -> list[tuple[Piece, ...]]:
    """Groups consecutive pieces; all groups but the last have `chunk_bytes` or more."""
    groups: list[tuple[Piece, ...]] = []
    current: list[Piece] = []
    size = 0
    for piece in pieces:
        current.append(piece)
        size += piece.num_bytes
        if size >= chunk_bytes:
            groups.append(tuple(current))
            current, size = [], 0
    if current:
        groups.append(tuple(current))
    return groups


def split_of(document: Document, validation_fraction: float) -> str:
    """Assigns a document to a split by its hash, whatever other documents there are."""
    if validation_fraction in (0, 1):
        return SPLITS[int(validation_fraction)]
    share = int.from_bytes(document.identity[:8], "little") / 2**64
    return "validation" if share < validation_fraction else "train"
