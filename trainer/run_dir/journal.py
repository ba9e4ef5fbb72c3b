"""Records what a run is (`run.json`) and what happens to it (`events.jsonl`).

`run.json` holds command, config, hardware, sizes and versions, and is written at each
start, with copies of the dataset's `manifest.json` and `tokenizer/`. `events.jsonl`
holds starts, warnings, errors and how the run ended. Needs no TensorFlow.
"""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import logging
import re
import shlex
import sys
from collections.abc import Iterator
from typing import Any

from absl import logging as absl_logging

from configs.errors import TryAgainError, UserError
from configs.schema import Config
from tfrecords.storage import files
from trainer.run_dir import json_files, layout

_PACKAGES = ("gpt2-tpu", "tensorflow", "tensorflow-tpu", "tf-keras", "transformers")
_WRITE_ERRORS = (OSError, UserError, TryAgainError)
# `logging.info(…, extra=EVENT)` also writes the message to `events.jsonl`.
EVENT = {"is_event": True}
# What the event of each start says.
STARTS = "training on"


def write_run_record(workdir: str, data_dir: str, config: Config, **facts: Any) -> None:
    """Writes `run.json`, and copies the dataset's manifest and tokenizer.

    Args:
      workdir: folder of the run.
      data_dir: folder of its dataset.
      config: of the run.
      **facts: further fields of `run.json`.
    """
    record = {
        "command": shlex.join(["python", "-m", "trainer.train", *sys.argv[1:]]),
        **facts,
        "config": dataclasses.asdict(config),
        "versions": dict(_versions()),
    }
    json_files.write(files.join(workdir, layout.RUN), record)
    tokenizer = files.sizes_and_versions(files.join(data_dir, layout.TOKENIZER))
    for name in (
        layout.MANIFEST,
        *(f"{layout.TOKENIZER}/{file}" for file in tokenizer),
    ):
        files.write(files.join(workdir, name), files.read(files.join(data_dir, name)))


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)


@contextlib.contextmanager
def record_events(workdir: str) -> Iterator[None]:
    """Writes warnings, errors and events logged inside, and an exception that ends it.

    Args:
      workdir: folder of the run.
    """
    handler = _EventsHandler(files.join(workdir, layout.EVENTS))
    logger = absl_logging.get_absl_logger()
    logger.addHandler(handler)
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        # A bucket whose failure ends the run does not take this line, either.
        with contextlib.suppress(*_WRITE_ERRORS):
            handler.write("error", str(error) or type(error).__name__)
        raise
    finally:
        logger.removeHandler(handler)


class _EventsHandler(logging.Handler):
    """Writes warnings, errors and records marked with `EVENT` to a file of lines."""

    def __init__(self, path: str):
        super().__init__()
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING and not hasattr(record, "is_event"):
            return
        try:
            self.write(record.levelname.lower(), record.getMessage())
        except _WRITE_ERRORS:  # a log must not end the run
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
        json_files.append_line(self._path, line)
