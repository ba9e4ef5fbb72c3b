"""A file of the input, its bytes after decompression, and its lines."""

import bz2
import dataclasses
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from typing import IO, BinaryIO

from configs.errors import DataError, UserError
from tfrecords.storage import files

# Bounds the memory of a worker, which holds some copies of a line.
MAX_LINE_BYTES = 512 << 20
# Lines are read in groups of about this size.
_GROUP_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A file of the input and its content's checksum.

    Attributes:
      path: local or `gs://…`.
      format: name of the entry of `registry.FORMATS` that reads it.
      compression: ending of the name, a key of `COMPRESSIONS`, or "".
      num_bytes: size as stored.
      sha256: of the bytes as stored, in hexadecimal.
      version: changes when the file is written again.
    """

    path: str
    format: str
    compression: str
    num_bytes: int
    sha256: str
    version: str


@dataclasses.dataclass(frozen=True)
class Piece:
    """Bytes [start, end) of a file; both are document boundaries."""

    file: InputFile
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Size of the piece as stored."""
        return self.end - self.start


def _open_gzip(stream: BinaryIO) -> IO[bytes]:
    return io.BufferedReader(gzip.open(stream))


def _open_zstandard(stream: BinaryIO) -> IO[bytes]:
    # The reader of the zstandard package takes a truncated file for a whole one.
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(stream, compression="zstd"))


# Ending of the file's name -> (opens the compressed stream, errors of damaged data).
COMPRESSIONS: dict[
    str, tuple[Callable[[BinaryIO], IO[bytes]], tuple[type[Exception], ...]]
] = {
    ".gz": (_open_gzip, (EOFError, OSError, zlib.error)),
    ".bz2": (bz2.open, (EOFError, OSError)),
    ".zst": (_open_zstandard, (OSError,)),
}


def open_file(file: InputFile) -> IO[bytes]:
    """Opens a file of the input for reading its decompressed bytes."""
    stream = files.open_read(file.path)
    if not file.compression:
        return stream
    open_compressed, _ = COMPRESSIONS[file.compression]
    return open_compressed(stream)


def check_unchanged(file: InputFile) -> None:
    """Raises DataError if the file was changed or removed after it was planned."""
    try:
        size, version = files.stat(file.path)
    except (OSError, UserError):
        size, version = None, ""
    if (size, version) != (file.num_bytes, file.version):
        raise DataError(
            f"{file.path} must not change while it is read. It had {file.num_bytes} "
            f"bytes. It was written again, and now has {size or 'none'}. When the "
            "input is complete, run the command again with --overwrite."
        )


def line_groups(piece: Piece) -> Iterator[tuple[int, bytes]]:
    """Yields (offset in the decompressed file, whole lines with their ends)."""
    with open_file(piece.file) as stream:
        if piece.start:
            stream.seek(piece.start)
        offset, size = piece.start, _GROUP_BYTES
        while True:
            # The decompressed size of a file is unknown: it is read to its end.
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


def check_size(num_bytes: int, file: InputFile) -> None:
    """Raises DataError if a line, row or paragraph exceeds MAX_LINE_BYTES."""
    if num_bytes > MAX_LINE_BYTES:
        raise DataError(
            f"A line, row or paragraph must not exceed {MAX_LINE_BYTES >> 20} MiB. "
            f"Received: a longer one in {file.path}. Break it into several."
        )


def line_name(piece: Piece, offset: int) -> str:
    """Returns "FILE:LINE" of an offset in the decompressed file, for messages."""
    with open_file(piece.file) as stream:
        number = 1
        while offset > 0 and (block := stream.read(min(offset, 1 << 20))):
            number += block.count(b"\n")
            offset -= len(block)
    return f"{piece.file.path}:{number}"


def split_name(name: str) -> tuple[str, str]:
    """Returns dataset and split of `PREFIX:DATASET/SPLIT`.

    Raises:
      DataError: the split is a part of one.
    """
    prefix, _, dataset_and_split = name.partition(":")
    dataset, _, split = dataset_and_split.rpartition("/")
    if "[" in split:
        raise DataError(
            f"`{prefix}:NAME/SPLIT` must name a whole split. Received: {name!r}. Leave "
            "the brackets out."
        )
    return dataset, split
