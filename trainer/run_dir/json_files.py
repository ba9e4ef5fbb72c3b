"""Reads and writes the JSON and JSON-lines files of a run's folder.

Each object carries a checksum of its own; see `tfrecords.checksums`.
"""

import json
from collections.abc import Mapping
from typing import Any

from absl import logging

from configs.errors import DataError
from tfrecords import checksums
from tfrecords.storage import files


def write(path: str, values: Mapping[str, Any]) -> None:
    """Writes one JSON object; raises ValueError for NaN, which JSON lacks."""
    text = json.dumps(checksums.sealed(values), indent=1, allow_nan=False) + "\n"
    files.write(path, text.encode())


def read(path: str) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
      DataError: the file is damaged.
    """
    return _parse(_text(path), path)


def read_folder(folder: str) -> list[dict[str, Any]]:
    """Reads all `*.json` files of a folder, sorted by name.

    Raises:
      DataError: a file is damaged.
    """
    names = sorted(files.sizes_and_versions(folder))
    return [read(files.join(folder, name)) for name in names if name.endswith(".json")]


def read_lines(path: str, *, required_field: str) -> list[dict[str, Any]]:
    """Reads a file of JSON objects, one per line.

    Args:
      path: of the file; where it does not exist, there are no lines.
      required_field: a field that each line must have.

    Returns:
      The objects. A last line without a newline was cut off by a kill, and is left out.

    Raises:
      DataError: a complete line is damaged.
    """
    if not files.exists(path):
        return []
    *complete_lines, torn_line = _text(path).split("\n")
    if torn_line:
        logging.warning("the last line of %s is cut off: it is left out", path)
    return [
        _parse(line, f"{path}, line {number}", required_field)
        for number, line in enumerate(complete_lines, 1)
    ]


def append_line(path: str, values: Mapping[str, Any]) -> None:
    """Appends one JSON object to a file of lines."""
    files.append(path, _to_line(values).encode())


class LinesWriter:
    """Continues a file of JSON lines, each of which has a `step`.

    Args:
      path: of the file.
      step: where the run continues; lines of later steps, which a run without a later
        checkpoint left behind, are removed from the file. 0: all lines are.
      is_writer: whether this machine writes the file; the others only read it.
    """

    def __init__(self, path: str, step: int, *, is_writer: bool):
        self._path = path
        self._buffer = ""
        lines = read_lines(path, required_field="step")
        self.lines = [line for line in lines if step and line["step"] <= step]
        kept = "".join(map(_to_line, self.lines)).encode()
        if is_writer and files.exists(path) and files.read(path) != kept:
            files.write(path, kept)

    @property
    def is_remote(self) -> bool:
        """Whether the file is in a bucket, where each flush writes all of it again."""
        return files.is_remote(self._path)

    def add(self, values: Mapping[str, Any]) -> None:
        """Buffers a line; `flush` writes it."""
        self._buffer += _to_line(values)

    def flush(self) -> None:
        """Appends the buffered lines to the file."""
        if self._buffer:
            files.append(self._path, self._buffer.encode())
        self._buffer = ""


def _text(path: str) -> str:
    return files.read(path).decode(errors="replace")


def _parse(text: str, name: str, required_field: str = "") -> dict[str, Any]:
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            reason = "not an object"
        elif required_field and required_field not in values:
            reason = f"no field {required_field!r}"
        else:
            return checksums.unsealed(values)
    except ValueError as error:
        reason = str(error)
    raise DataError(f"{name} is damaged: {reason}. Repair or remove it.")


def _to_line(values: Mapping[str, Any]) -> str:
    return json.dumps(checksums.sealed(values)) + "\n"
