"""A document, and how the bytes of the input become one.

Reading streams: memory is bounded by the longest line or row, not by the file. What is
not as it should be is an error, or is repaired and counted, as the config says.
"""

import bz2
import dataclasses
import gzip
import hashlib
import io
import re
from collections.abc import Iterator, Set
from typing import IO

from configs.errors import DataError
from configs.schema import DataConfig
from data_pipeline.sources import InputFile, Piece
from tfrecords.storage import files

MAX_LINE_BYTES = 64 << 20
# A text file that is one document is read in groups of lines of this size.
_GROUP_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# What the manifest counts: documents that were repaired, that hold something odd which
# is kept, and that were left out.
BYTE_ORDER_MARK, INVALID_UTF8 = "byte_order_mark", "invalid_utf8"
CRLF, NUL = "crlf", "nul"
REPAIRED, KEPT = {BYTE_ORDER_MARK, INVALID_UTF8}, {CRLF, NUL}
EMPTY = "empty"

NOTHING: Set[str] = frozenset()
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
    noticed: Set[str] = NOTHING
    skipped: str = ""

    @property
    def identity(self) -> bytes:
        """SHA-256 of the document: the same text is the same document."""
        if self.file_hash:
            return self.file_hash
        (text,) = self.parts
        return hashlib.sha256(text).digest()


def make(
    text: bytes,
    config: DataConfig,
    *,
    label: int = 0,
    end: bytes = b"",
    noticed: Set[str] = NOTHING,
) -> Document:
    """Notices what a text holds; takes `end`, or CRLF for LF, off its end."""
    if b"\r" in text and b"\r\n" in text:  # the first is much faster
        noticed |= {CRLF}
        if end and text.endswith(b"\r\n"):
            end = b"\r\n"
    if b"\0" in text:
        noticed |= {NUL}
    text = text.removesuffix(end)
    skipped = EMPTY if is_blank(text) else ""
    if INVALID_UTF8 in noticed and config.encoding_errors == "skip":
        skipped = INVALID_UTF8
    return Document((text,), b"", label, noticed, skipped)


def is_clean(text: bytes) -> bool:
    """Whether `make` would notice nothing, nor in any line of it."""
    return b"\r" not in text and b"\0" not in text


def is_blank(text: bytes) -> bool:
    """Whether a text is nothing but white space, also that of Unicode."""
    if _STARTS_WITH_WORD.match(text):
        return False
    return not text.strip() or text.decode().isspace()


def valid_utf8(
    data: bytes, piece: Piece, offset: int, config: DataConfig
) -> tuple[bytes, Set[str]]:
    """Returns valid UTF-8, and what had to be changed in bytes of a file for that."""
    noticed = NOTHING
    if offset == 0 and data.startswith(_BYTE_ORDER_MARK):
        data = data.removeprefix(_BYTE_ORDER_MARK)
        offset = len(_BYTE_ORDER_MARK)
        noticed |= {BYTE_ORDER_MARK}
    try:
        data.decode()
    except UnicodeDecodeError as error:
        if config.encoding_errors == "stop":
            raise DataError(
                f"{piece.file.path} must be UTF-8. Byte {offset + error.start} is not: "
                f"{error.reason}. Convert the file (iconv -f … -t UTF-8), or set "
                "`--config.data.encoding_errors` to replace or skip."
            ) from error
        data = data.decode("utf-8", "replace").encode()
        noticed |= {INVALID_UTF8}
    return data, noticed


def line_groups(piece: Piece) -> Iterator[tuple[int, bytes]]:
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
                check_size(len(rest), piece.file)
                group += rest
            yield offset, group
            offset += len(group)


def lines(piece: Piece) -> Iterator[tuple[int, bytes]]:
    """Yields (offset in the decompressed file, line with its end)."""
    for offset, group in line_groups(piece):
        for line in io.BytesIO(group):
            yield offset, line
            offset += len(line)


def _open(file: InputFile) -> IO[bytes]:
    stream = files.open_read(file.path)
    if file.compression == ".gz":
        return io.BufferedReader(gzip.open(stream))
    if file.compression == ".bz2":
        return bz2.open(stream)
    if file.compression == ".zst":
        import pyarrow  # zstandard's own reader takes a file that was cut for whole

        return io.BufferedReader(pyarrow.input_stream(stream, compression="zstd"))
    return stream


def check_size(num_bytes: int, file: InputFile) -> None:
    if num_bytes > MAX_LINE_BYTES:
        raise DataError(
            f"A line, row or paragraph must not exceed {MAX_LINE_BYTES >> 20} MiB. "
            f"{file.path} has a longer one. Break it."
        )


def place_of(piece: Piece, offset: int) -> str:
    """Returns "FILE:LINE" of an offset in the decompressed file."""
    with _open(piece.file) as stream:
        number = 1
        while offset > 0 and (block := stream.read(min(offset, 1 << 20))):
            number += block.count(b"\n")
            offset -= len(block)
    return f"{piece.file.path}:{number}"
