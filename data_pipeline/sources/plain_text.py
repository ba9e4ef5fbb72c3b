"""Plain text: a document is a file, a line, or a paragraph between blank lines."""

import hashlib
import io
import itertools
from collections.abc import Iterator
from typing import BinaryIO

from configs.schema import DataConfig
from data_pipeline.documents import document
from data_pipeline.documents.document import Document
from data_pipeline.sources import input_files
from data_pipeline.sources.input_files import InputFile, Piece


def read(piece: Piece, config: DataConfig) -> Iterator[Document]:
    """Yields the documents of a piece."""
    readers = {"file": _whole_file, "line": _lines, "paragraph": _paragraphs}
    return readers[config.document](piece, config)


def is_divisible(file: InputFile, config: DataConfig) -> bool:
    """Returns whether a file may have several documents."""
    del file
    return config.document != "file"


def skip_document(stream: BinaryIO, config: DataConfig) -> None:
    """Moves a stream behind the line that it is in, or behind the next blank line."""
    stream.readline()
    if config.document == "paragraph":
        while (line := stream.readline()) and line.strip():
            pass


def _paragraphs(piece: Piece, config: DataConfig) -> Iterator[Document]:
    paragraph: list[bytes] = []
    start, size = piece.start, 0
    for offset, line in input_files.lines(piece):
        if line.strip():
            start = start if paragraph else offset
            size = size + len(line) if paragraph else len(line)
            input_files.check_size(size, piece.file)
            paragraph.append(line)
        elif paragraph:
            yield _document(b"".join(paragraph), start, piece, config)
            paragraph = []
    if paragraph:
        yield _document(b"".join(paragraph), start, piece, config)


def _lines(piece: Piece, config: DataConfig) -> Iterator[Document]:
    for offset, group in input_files.line_groups(piece):
        path = piece.file.path
        text, oddities = document.repair_utf8(group, path, offset, config)
        if not oddities and document.is_clean(text):  # the usual case, and much faster
            for line in text.removesuffix(b"\n").split(b"\n"):
                empty = document.EMPTY if document.is_blank(line) else ""
                yield Document((line,), skipped=empty)
            continue
        for line in io.BytesIO(group):
            yield _document(line, offset, piece, config)
            offset += len(line)


def _document(data: bytes, offset: int, piece: Piece, config: DataConfig) -> Document:
    text, oddities = document.repair_utf8(data, piece.file.path, offset, config)
    return document.make(text, config, end=b"\n", oddities=oddities)


def _whole_file(piece: Piece, config: DataConfig) -> Iterator[Document]:
    """Yields the file as one document, which is read in groups of lines."""
    file_hash, is_utf8 = bytes.fromhex(piece.file.sha256), True
    if piece.file.compression or config.encoding_errors == "skip":
        file_hash, is_utf8 = _scan(piece)
    whole = Document((b"",), file_hash)
    if not is_utf8 and config.encoding_errors == "skip":
        whole.skipped = document.INVALID_UTF8
        yield whole
        return

    def read_parts() -> Iterator[bytes]:
        for offset, group in input_files.line_groups(piece):
            path = piece.file.path
            text, oddities = document.repair_utf8(group, path, offset, config)
            part = document.make(text, config, oddities=oddities)
            whole.oddities |= part.oddities
            yield from part.parts

    parts = read_parts()
    blank = []  # white space before the first word
    for part in parts:
        blank.append(part)
        if not document.is_blank(part):
            whole.parts = itertools.chain(blank, parts)
            yield whole
            return
    whole.skipped = document.EMPTY
    yield whole


def _scan(piece: Piece) -> tuple[bytes, bool]:
    """Returns a file's hash and whether it is UTF-8, which takes one more reading."""
    digest, is_utf8 = hashlib.sha256(), True
    for _, group in input_files.line_groups(piece):
        digest.update(group)
        try:
            group.decode()
        except UnicodeDecodeError:
            is_utf8 = False
    return digest.digest(), is_utf8
