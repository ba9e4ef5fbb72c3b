"""What the user names -> files: local, in buckets, by name, or built in."""

import contextlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from absl import logging

from configs.errors import DataError
from configs.schema import DataConfig
from data_pipeline.sources import hugging_face
from data_pipeline.sources.input_files import COMPRESSIONS, InputFile
from data_pipeline.sources.registry import FORMATS, PLAIN_TEXT
from tfrecords import checksums
from tfrecords.storage import files

# Files that must not be read as plain text, and the remedy.
_REFUSED_ENDINGS = {
    ".json": "write one object a line, as .jsonl",
    ".xz": f"decompress it, or use one of {', '.join(COMPRESSIONS)}",
    ".zip": "unpack it",
    ".tar": "unpack it",
    ".tgz": "unpack it",
    ".pdf": "extract its text",
    ".tfrecord": "name the text that it was made from, or use tfds:",
}


def find_files(names: str, config: DataConfig, *, flag: str) -> list[InputFile]:
    """Finds what a list of files, folders, globs and datasets names.

    Args:
      names: the list, separated by line ends or commas.
      config: what the sources need beside the name.
      flag: where the names come from, for messages.

    Returns:
      The files sorted by path, each once: the order of the list does not matter.

    Raises:
      DataError: a name matches nothing, all files are empty, or one cannot be read.
    """
    formats: dict[str, tuple[str, str]] = {}  # by a path that is the same for links
    hidden: set[str] = set()
    with _one_message():
        split_names = _split(names)
    for name in split_names:
        with _one_message():
            matches = _expand(name, config, hidden)
        if not matches:
            raise DataError(
                f"`--{flag}` must name files that exist. Received: {name!r}, which "
                "matches none. Correct the path, or quote the glob."
            )
        for path, format_name in matches.items():
            real_path = path if files.is_remote(path) else os.path.realpath(path)
            formats.setdefault(real_path, (path, format_name))
    if not formats:
        prefixes = [format_.prefix for format_ in FORMATS.values() if format_.prefix]
        raise DataError(
            f"`--{flag}` must name the text: files, folders or globs, separated by "
            f"commas, or what begins with {' or '.join(prefixes)}. Received: nothing."
        )
    hidden -= {path for path, _ in formats.values()}
    if hidden:
        logging.warning(
            "left out: %d hidden files and folders, such as %s; --%s can name them",
            len(hidden),
            min(hidden),
            flag,
        )
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
        input_files = list(pool.map(_describe, sorted(formats.values())))
    if not any(file.num_bytes for file in input_files):
        raise DataError(
            f"`--{flag}` must name text. Received: {names}, whose files are empty. "
            "Name others."
        )
    return input_files


def _split(names: str, separators: str = "\n,") -> list[str]:
    """Splits a list of names; what selects files as it stands is one name."""
    names = names.strip()
    if not separators:
        return [names] if names else []
    separator, rest = separators[0], separators[1:]
    if separator in names and files.expand(names):
        return [names]
    return [name for part in names.split(separator) for name in _split(part, rest)]


def _expand(name: str, config: DataConfig, hidden: set[str]) -> dict[str, str]:
    """Returns the paths that one name stands for, with their formats."""
    for format_name, format_ in FORMATS.items():
        prefix = format_.prefix
        matches = name.startswith(prefix) if prefix[-1:] == ":" else name == prefix
        if format_.list_files and matches:
            return dict.fromkeys(format_.list_files(name, config), format_name)
    paths = hugging_face.select_saved(files.expand(name, hidden))
    return {path: _format_of(path) for path in paths}


def _format_of(path: str) -> str:
    stem, ending = os.path.splitext(path.lower())
    if ending in COMPRESSIONS:
        ending = os.path.splitext(stem)[1]
    for format_name, format_ in FORMATS.items():
        if ending in format_.endings:
            return format_name
    if ending in _REFUSED_ENDINGS:
        endings = [e for format_ in FORMATS.values() for e in format_.endings]
        raise DataError(
            f"The input must be plain text, or end in {', '.join(endings)}. Received: "
            f"{path}. Leave it out, or {_REFUSED_ENDINGS[ending]}."
        )
    return PLAIN_TEXT


def _describe(path_and_format: tuple[str, str]) -> InputFile:
    path, format_name = path_and_format
    ending = os.path.splitext(path.lower())[1]
    with _one_message():
        size, version = files.stat(path)
        if not files.is_remote(path) and not stat.S_ISREG(os.stat(path).st_mode):
            raise DataError(
                f"{path} must be a file. Received: a pipe or a device. Write its text "
                "to a file, or leave it out."
            )
        sha256 = checksums.sha256(path)[1]
    return InputFile(
        path=path,
        format=format_name,
        compression=ending if ending in COMPRESSIONS else "",
        num_bytes=size,
        sha256=sha256,
        version=version,
    )


@contextlib.contextmanager
def _one_message() -> Iterator[None]:
    """Raises DataError for a file or folder that cannot be read."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename} must be readable. Opening it fails with: "
            f"{error.strerror}. Change its permissions, or leave it out."
        ) from error
