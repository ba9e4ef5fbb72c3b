"""Does each work item once, also if the run is stopped and started again.

A marker, beside the files that an item made, holds the item's fingerprint and the
checksums of the files. Only if all of them match is the item finished: a file alone
proves nothing.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from tfrecords.storage import files


def fingerprint(*parts: Any) -> str:
    """Returns a SHA-256, in hexadecimal, of bytes and of values that JSON can hold."""
    digest = hashlib.sha256()
    for part in parts:
        if not isinstance(part, bytes):
            part = json.dumps(part, sort_keys=True).encode()
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def do_once(
    marker: str, item: str, work: Callable[[], tuple[list[str], dict[str, Any]]]
) -> dict[str, Any]:
    """Does the work, unless the marker shows that it is finished.

    Args:
      marker: path of the marker.
      item: fingerprint of the work item.
      work: () -> paths of the files that it made, in the marker's folder or below, and
        a result that JSON can hold.

    Returns:
      The result.
    """
    result = _load(marker, item)
    if result is None:
        paths, result = work()
        # Paths relative to the marker stay right when the folder is copied.
        folder = marker.rpartition("/")[0] + "/"
        checksums = {path.removeprefix(folder): files.checksum(path) for path in paths}
        content = {"item": item, "checksums": checksums, "result": result}
        files.write(marker, json.dumps(content).encode())
    return result


def _load(marker: str, item: str) -> dict[str, Any] | None:
    """Returns the result of finished work, or None."""
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
        pass  # the marker is damaged
    return None
