"""Work that was done: a marker beside the result says from what it was made.

A marker holds the fingerprint of the work item and the checksums of its files. Work
counts as done when all of that is so, never because a file is there.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from tfrecords.storage import files


def fingerprint(*parts: Any) -> str:
    """Returns a SHA-256 of values that JSON can hold, or of bytes."""
    digest = hashlib.sha256()
    for part in parts:
        if not isinstance(part, bytes):
            part = json.dumps(part, sort_keys=True).encode()
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def load(marker: str, item: str) -> dict[str, Any] | None:
    """Returns the result of finished work, or None.

    Args:
      marker: path of the marker.
      item: fingerprint of the work item.
    """
    if not files.exists(marker):
        return None
    try:
        stored = json.loads(files.read(marker))
        folder = marker.rpartition("/")[0]
        if stored["item"] == item and all(
            files.exists(f"{folder}/{name}")
            and files.checksum(f"{folder}/{name}") == checksum
            for name, checksum in stored["checksums"].items()
        ):
            return stored["result"]
    except (ValueError, KeyError, TypeError):
        pass  # a torn marker
    return None


def save(marker: str, item: str, paths: Sequence[str], result: dict[str, Any]) -> None:
    """Says that work is done.

    Args:
      marker: path of the marker.
      item: fingerprint of the work item.
      paths: of files in the marker's folder.
      result: comes back from `load` as JSON keeps it.
    """
    # Not by their whole paths: the folder may be another one's copy.
    folder = marker.rpartition("/")[0] + "/"
    checksums = {path.removeprefix(folder): files.checksum(path) for path in paths}
    content = {"item": item, "checksums": checksums, "result": result}
    files.write(marker, json.dumps(content).encode())
