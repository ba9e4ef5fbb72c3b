"""What a run is and what happens to it, for people and for the report.

`run.json`: command, config, hardware and sizes, written at each start. `manifest.json`
and `tokenizer/`: the dataset's. `events.jsonl`: starts, warnings and how it ended. Does
without TensorFlow.
"""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import logging
import re
import shlex
import sys
from collections.abc import Iterator
from typing import Any

from absl import logging as absl_logging

from configs.errors import TryAgainError, UserError
from configs.schema import Config
from tfrecords import manifest as manifests
from tfrecords.storage import files

RUN_NAME = "run.json"
EVENTS_NAME = "events.jsonl"
# `metrics` writes these.
METRICS_NAME = "metrics.jsonl"
SAMPLES_NAME = "samples.jsonl"
_PACKAGES = ("gpt2-tpu", "tensorflow", "tensorflow-tpu", "tf-keras", "transformers")
_NOT_WRITTEN = (OSError, UserError, TryAgainError)
# What `logging.info` takes for a message that is an event.
EVENT = {"is_event": True}


def describe(workdir: str, data_dir: str, config: Config, **facts: Any) -> None:
    """Writes `run.json`, and copies the dataset's manifest and tokenizer.

    Args:
      workdir: of the run.
      data_dir: of its dataset.
      config: of the run.
      **facts: what else is to be known, as JSON.
    """
    found = {
        "command": shlex.join(["python", "-m", "trainer.train", *sys.argv[1:]]),
        **facts,
        "config": dataclasses.asdict(config),
        "versions": dict(_versions()),
    }
    record = json.dumps(found, indent=1) + "\n"
    files.write(files.join(workdir, RUN_NAME), record.encode())
    tokenizer = files.sizes_and_versions(
        files.join(data_dir, manifests.TOKENIZER_FOLDER)
    )
    copied = [f"{manifests.TOKENIZER_FOLDER}/{name}" for name in tokenizer]
    for name in (manifests.FILE_NAME, *copied):
        files.write(files.join(workdir, name), files.read(files.join(data_dir, name)))


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)


def lines(workdir: str, name: str, *, needed: str) -> list[dict[str, Any]]:
    """Reads JSON lines; a last one that is not yet whole is left out.

    Args:
      workdir: of the run.
      name: of the file; where there is none, there are no lines.
      needed: a field that each line has.

    Raises:
      UserError: the file is damaged.
    """
    path = files.join(workdir, name)
    if not files.exists(path):
        return []
    whole = text(path).split("\n")[:-1]
    return [
        parse(line, f"{path}, line {number}", needed)
        for number, line in enumerate(whole, 1)
    ]


def folder(path: str) -> list[dict[str, Any]]:
    """Reads the JSON files of a folder, by their names; raises as `lines` does."""
    there = files.sizes_and_versions(path)
    paths = [files.join(path, n) for n in sorted(there) if n.endswith(".json")]
    return [parse(text(path), path) for path in paths]


def text(path: str) -> str:
    return files.read(path).decode(errors="replace")


def parse(line: str, path: str, needed: str = "") -> dict[str, Any]:
    try:
        found = json.loads(line)
        if isinstance(found, dict) and (not needed or needed in found):
            return found
        reason = f"no object with {needed!r}" if needed else "no object"
    except ValueError as error:
        reason = str(error)
    raise UserError(f"{path} is damaged: {reason}. Mend or remove it.")


@contextlib.contextmanager
def recorded(workdir: str) -> Iterator[None]:
    """Keeps what is said inside: warnings, errors, events, and what ended the run."""
    handler = _Events(files.join(workdir, EVENTS_NAME))
    logger = absl_logging.get_absl_logger()
    logger.addHandler(handler)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        # Where the bucket is what failed, it does not take this, either.
        with contextlib.suppress(*_NOT_WRITTEN):
            handler.write("error", str(error) or type(error).__name__)
        raise
    finally:
        logger.removeHandler(handler)


class _Events(logging.Handler):
    def __init__(self, path: str):
        super().__init__()
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING and not hasattr(record, "is_event"):
            return
        try:
            self.write(record.levelname.lower(), record.getMessage())
        except _NOT_WRITTEN:  # a log must not end the run
            self.handleError(record)

    def write(self, level: str, message: str) -> None:
        step = re.match(r"step (\d+)", message)
        now = datetime.datetime.now(datetime.timezone.utc)
        line = {
            "time": f"{now:%Y-%m-%dT%H:%M:%SZ}",
            "step": int(step[1]) if step else None,
            "level": level,
            "message": message,
        }
        files.append(self._path, f"{json.dumps(line)}\n".encode())
