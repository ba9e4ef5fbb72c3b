"""From what the user names to pieces of input: files, buckets, TFDS, built-in text.

Large uncompressed files are cut at document boundaries into pieces of about the same
size, whatever the number of workers. `readers` reads a piece.
"""

import dataclasses
import hashlib
import itertools
import os
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

from configs.errors import DataError, UserError
from configs.schema import DataConfig
from tfrecords.storage import files

PYTHON_DOCS = "builtin:python_docs"
_TFDS = "tfds:"
_NOT_DOCUMENTATION = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "__pycache__",
    "_bundled",
}
_COMPRESSIONS = (".gz", ".bz2", ".zst")
_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
# Never taken for text.
_OTHER_FORMATS = {
    ".json": "write one object a line, as .jsonl",
    ".xz": "decompress it, or use .gz, .bz2 or .zst",
    ".zip": "unpack it",
    ".tar": "unpack it",
    ".tgz": "unpack it",
    ".pdf": "extract its text",
    ".tfrecord": "name the text that it was made from, or use tfds:",
    ".arrow": "save it as Parquet",
}


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A file, how to read it, and what is in it.

    `format`: "text", "jsonl", "csv", "tsv", "parquet", "tfds" or "python".
    `compression`: ".gz", ".bz2", ".zst" or "". `version` tells whether the file was
    written again since it was planned.
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


def find_files(names: str, flag: str, tfds_data_dir: str = "") -> list[InputFile]:
    """Finds what a comma-separated list of files, folders, globs and datasets names.

    Returns:
      The files sorted by path, each once: the order of the list does not matter.

    Raises:
      DataError: a name matches nothing, or all files are empty.
    """
    found: dict[str, tuple[str, str]] = {}
    for name in filter(None, (part.strip() for part in names.split(","))):
        formats = _expand(name, tfds_data_dir)
        if not formats:
            raise DataError(
                f"`--{flag}` must name files that exist. Received: {name!r}, which "
                "matches none. Correct the path, or quote the glob."
            )
        for path, file_format in formats.items():
            # By whatever spelling or link it is named, a file is read once.
            real = path if files.is_remote(path) else os.path.realpath(path)
            found.setdefault(real, (path, file_format))
    if not found:
        raise DataError(
            f"`--{flag}` must name the text: files, folders or globs, separated by "
            f"commas, {_TFDS}NAME/SPLIT, or {PYTHON_DOCS}. Received: nothing."
        )
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        files_in_order = list(pool.map(_describe, sorted(found.values())))
    if not any(file.num_bytes for file in files_in_order):
        raise DataError(f"All files of the input are empty. Received: {names}.")
    return files_in_order


def cut(file: InputFile, config: DataConfig, piece_bytes: int) -> list[Piece]:
    """Cuts a file into pieces of about `piece_bytes`, at document boundaries."""
    if file.num_bytes <= piece_bytes or not _is_divisible(file, config):
        return [Piece(file, 0, file.num_bytes)]
    boundaries = [0]
    with files.open_read(file.path) as stream:
        while (target := boundaries[-1] + piece_bytes) < file.num_bytes:
            stream.seek(target)
            stream.readline()  # what is left of a line that began before
            if file.format == "text" and config.document == "paragraph":
                _skip_paragraph(stream)
            boundaries.append(stream.tell())
    boundaries = [b for b in boundaries if b < file.num_bytes] + [file.num_bytes]
    return [Piece(file, start, end) for start, end in itertools.pairwise(boundaries)]


def check_unchanged(file: InputFile) -> None:
    """Raises DataError where a file is not the one that was planned any more."""
    try:
        found = files.stat(file.path)
    except (OSError, UserError):
        found = None
    if found != (file.num_bytes, file.version):
        raise DataError(
            f"{file.path} must stay as it is while it is read. It had {file.num_bytes} "
            f"bytes; now it has {found[0] if found else 'none'}, or was written again. "
            "Run the command again with --overwrite when the input is complete."
        )


def _expand(name: str, tfds_data_dir: str) -> dict[str, str]:
    """Returns the files that one name stands for, with their formats."""
    if name == PYTHON_DOCS:
        return dict.fromkeys(_python_files(), "python")
    if name.startswith(_TFDS):
        return dict.fromkeys(_tfds_files(name, tfds_data_dir), "tfds")
    return {path: _format(path) for path in files.expand(name)}


def _format(path: str) -> str:
    stem, ending = os.path.splitext(path.lower())
    if ending in _COMPRESSIONS:
        ending = os.path.splitext(stem)[1]
    if ending in _OTHER_FORMATS:
        raise DataError(
            "The input must be text, JSONL, CSV, TSV or Parquet. Received: "
            f"{path}. Leave it out, or {_OTHER_FORMATS[ending]}."
        )
    return _FORMATS.get(ending, "text")


def _describe(path_and_format: tuple[str, str]) -> InputFile:
    path, file_format = path_and_format
    ending = os.path.splitext(path.lower())[1]
    digest = hashlib.sha256()
    try:
        size, version = files.stat(path)
        with files.open_read(path) as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(
            f"{path} must be readable. Opening it said: {error.strerror}. Change its "
            "permissions, or leave it out."
        ) from error
    return InputFile(
        path=path,
        format=file_format,
        compression=ending if ending in _COMPRESSIONS else "",
        num_bytes=size,
        sha256=digest.hexdigest(),
        version=version,
    )


def _is_divisible(file: InputFile, config: DataConfig) -> bool:
    if file.compression or file.format in ("parquet", "tfds", "python"):
        return False
    if file.format in ("csv", "tsv"):
        # A quoted field may hold line ends; without quotes each one ends a row.
        with files.open_read(file.path) as stream:
            blocks = iter(lambda: stream.read(1 << 20), b"")
            return not any(b'"' in block for block in blocks)
    return file.format == "jsonl" or config.document != "file"


def _skip_paragraph(stream: BinaryIO) -> None:
    """Moves on to behind the next blank line."""
    while (line := stream.readline()) and line.strip():
        pass


def _python_files() -> list[str]:
    """The standard library's modules, and pydoc's topics, without tests."""
    root = sysconfig.get_paths()["stdlib"]
    paths = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _NOT_DOCUMENTATION]
        paths += [os.path.join(folder, name) for name in names if name.endswith(".py")]
    return paths


def _tfds_files(name: str, data_dir: str) -> list[str]:
    """The files of a TFDS split, which is downloaded and built where it is absent."""
    import tensorflow_datasets as tfds

    dataset, _, split = name.removeprefix(_TFDS).rpartition("/")
    if "[" in split:
        raise DataError(
            f"`{_TFDS}NAME/SPLIT` must name a whole split. Received: {name!r}. Leave "
            "the brackets out."
        )
    try:
        builder = tfds.builder(dataset, data_dir=data_dir or None)
        builder.download_and_prepare()
        return [str(path) for path in builder.info.splits[split].filepaths]
    except Exception as error:  # AssertionError for a version, DownloadError, …
        said = [*str(error).strip().splitlines(), type(error).__name__]
        raise DataError(
            f"`{_TFDS}NAME[:VERSION]/SPLIT` must name a dataset of tensorflow-datasets "
            f"and one of its splits. Received: {name!r}, data_dir {data_dir!r}. It "
            f"said: {said[0]}"
        ) from error
