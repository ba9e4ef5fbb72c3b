"""The folders of a run's checkpoints: which are complete, and which are intact.

`step-00000100/` holds `state.safetensors` and, written last, `checkpoint.json` with its
checksum. A folder without that file is an incomplete save. A damaged checkpoint is
renamed to `step-00000100.damaged`.
"""

import dataclasses
import json
import re
from typing import Any

from absl import logging

from configs.errors import DataError
from tfrecords import checksums
from tfrecords.storage import files
from trainer.run_dir import layout

FORMAT_VERSION = 2
STATE = "state.safetensors"
RECORD = "checkpoint.json"


class _DamagedError(ValueError):
    """Raised within this module where a checkpoint is not as it was saved."""


@dataclasses.dataclass(frozen=True)
class Record:
    """The contents of `checkpoint.json`."""

    format_version: int
    step: int
    state_bytes: int
    state_sha256: str
    config: dict[str, Any]
    model_config: dict[str, Any]  # the architecture's configuration
    dataset_fingerprint: str
    tokenizer_fingerprint: str
    base_sha256: str = ""  # of the frozen weights that LoRA's adapters belong to


def root(workdir: str) -> str:
    """Returns the folder of a run's checkpoints."""
    return files.join(workdir, layout.CHECKPOINTS)


def list_folders(folder: str, *, whole: bool = True) -> list[str]:
    """Returns the checkpoints by step: those with a record, or those without."""
    names: dict[str, set[str]] = {}
    for path in files.expand(folder):
        parent, _, name = path.rpartition("/")
        if re.fullmatch(r"step-\d{8,}", parent.rpartition("/")[2]):
            names.setdefault(parent, set()).add(name)
    selected = [parent for parent in names if (RECORD in names[parent]) == whole]
    return sorted(selected, key=step_of)


def step_of(folder: str) -> int:
    """Returns the step of a checkpoint's folder."""
    return int(folder.rpartition("/step-")[2])


def newest_intact(folders: list[str], *, set_aside: bool) -> tuple[str, Record] | None:
    """Returns the newest checkpoint whose checksums are right, or None.

    Args:
      folders: of checkpoints, by step.
      set_aside: whether to rename newer damaged ones, so that they can be examined.

    Raises:
      DataError: all checkpoints are damaged, or one has another format version.
    """
    problems: dict[str, str] = {}
    for path in reversed(folders):
        try:
            record = _verified(path)
        except _DamagedError as error:
            problems[path] = str(error)
            continue
        for damaged, problem in problems.items():
            logging.error("%s Restoring %s instead.", problem, path)
            if set_aside:
                _set_aside(damaged)
        return path, record
    if problems:
        raise DataError(
            "All checkpoints are damaged:\n  "
            + "\n  ".join(problems.values())
            + "\nUse a new --workdir to start again, or copy an intact one back."
        )
    return None


def remove(folder: str) -> None:
    """Removes a checkpoint, its record first: without it the rest is incomplete."""
    files.remove(f"{folder}/{RECORD}")
    files.remove(folder)


def _set_aside(folder: str) -> None:
    for name in (STATE, RECORD):  # without its record, it would be removed
        if files.exists(f"{folder}/{name}"):
            files.move(f"{folder}/{name}", f"{folder}.damaged/{name}")
    files.remove(folder)


def _verified(folder: str) -> Record:
    record = _read_record(folder)
    if record.step != step_of(folder):
        raise _DamagedError(f"{folder}/{RECORD} is damaged: its step is {record.step}.")
    path = f"{folder}/{STATE}"
    if not files.exists(path):
        raise _DamagedError(f"{path} is missing.")
    num_bytes, sha256 = checksums.sha256(path)
    if (num_bytes, sha256) != (record.state_bytes, record.state_sha256):
        raise _DamagedError(
            f"{path} must have {record.state_bytes} bytes and the SHA-256 "
            f"{record.state_sha256[:16]}…. It has {num_bytes} and {sha256[:16]}…."
        )
    return record


def _read_record(folder: str) -> Record:
    path = f"{folder}/{RECORD}"
    text = files.read(path)
    try:
        values = json.loads(text)
        version = values["format_version"]
        if version == FORMAT_VERSION:
            return Record(**checksums.unsealed(values))
    except (ValueError, TypeError, KeyError) as error:
        raise _DamagedError(f"{path} is damaged: {error!r}.") from error
    raise DataError(
        f"{path} must have format version {FORMAT_VERSION}. Received: {version!r}. Use "
        "the version of gpt2-tpu that wrote it, or a new --workdir."
    )
