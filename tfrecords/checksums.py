"""Detects damaged files: by their SHA-256, and JSON objects by a CRC-32 of their own.

A list of SHA-256 stands in a manifest, or in a file that `sha256sum --check` reads. A
JSON object carries the CRC-32 of its other fields in the field `crc32`. Objects and
folders that older versions wrote have neither, and are accepted.
"""

import hashlib
import json
import pathlib
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from configs.errors import DataError
from tfrecords.storage import files

LIST_NAME = "SHA256SUMS"
_BLOCK_BYTES = 1 << 20
_SEAL = "crc32"
_SEAL_VALUE = re.compile(r"crc32:[0-9a-f]{8}")


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a JSON object with the CRC-32 of its fields."""
    # What a reader will parse: tuples are lists there, and all keys are strings.
    return {**values, _SEAL: _crc32(json.loads(json.dumps(values)))}


def unsealed(values: dict[str, Any]) -> dict[str, Any]:
    """Returns a parsed JSON object without its CRC-32.

    Raises:
      ValueError: the CRC-32 is not that of the fields.
    """
    fields = {name: value for name, value in values.items() if name != _SEAL}
    # The value is recognized, too: the name of the field may be what is damaged.
    is_sealed = _SEAL in values or any(
        isinstance(value, str) and _SEAL_VALUE.fullmatch(value)
        for value in fields.values()
    )
    if is_sealed and values.get(_SEAL) != (crc := _crc32(fields)):
        raise ValueError(f"its checksum must be {crc}, not {values.get(_SEAL)}")
    return fields


def _crc32(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True)
    return f"crc32:{zlib.crc32(text.encode()):08x}"


def sha256(path: str) -> tuple[int, str]:
    """Returns the size in bytes and the SHA-256 of a file, hexadecimal."""
    digest, size = hashlib.sha256(), 0
    with files.open_read(path) as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def differences(folder: str, expected: Mapping[str, str]) -> list[str]:
    """Returns a message for each file that is missing or has another SHA-256.

    Args:
      folder: local or gs://….
      expected: path in the folder -> SHA-256.
    """
    problems = []
    for name, wanted in expected.items():
        path = files.join(folder, name)
        if not files.exists(path):
            problems.append(f"{path} is missing.")
            continue
        try:
            received = sha256(path)[1]
        except OSError as error:
            problems.append(f"{path} cannot be read: {error.strerror}.")
            continue
        if received != wanted:
            problems.append(
                f"{path} must have the SHA-256 {wanted[:16]}…. It has {received[:16]}…."
            )
    return problems


def write_list(folder: pathlib.Path, names: Iterable[str]) -> None:
    """Writes the SHA-256 of a local folder's files into its `SHA256SUMS`."""
    lines = [f"{sha256(str(folder / name))[1]}  {name}\n" for name in names]
    (folder / LIST_NAME).write_text("".join(lines))


def verify_list(folder: str) -> None:
    """Compares a folder with its `SHA256SUMS`, if it has one.

    Raises:
      DataError: a file that is listed is missing or differs.
    """
    path = files.join(folder, LIST_NAME)
    if not files.exists(path):
        return
    expected = {}
    for line in files.read(path).decode(errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        expected[name] = digest
    problems = differences(folder, expected)
    if problems:
        raise DataError(
            "\n".join(problems)
            + f"\nCopy or export the model again; or remove {path} if you changed the "
            "model."
        )
