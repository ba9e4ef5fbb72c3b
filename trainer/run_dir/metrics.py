"""What a run measures, as JSON lines in its workdir, and in its trackers.

A line of `metrics.jsonl` is {"step": …, and the values that were measured after that
many updates}; one of `samples.jsonl`, {"step", "prompt", "text"}.
"""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from configs.errors import TryAgainError, UserError
from tfrecords.storage import files
from trainer.run_dir import journal
from trainer.run_dir.journal import METRICS_NAME, SAMPLES_NAME
from trainer.run_dir.trackers import Tracker


class MetricsLog:
    """Appends to a run's metrics.

    Args:
      workdir: of the run.
      step: updates made so far; what a lost continuation wrote after it is dropped.
      writes: whether this machine writes them; all know them.
    """

    def __init__(self, workdir: str, step: int, *, writes: bool = True):
        self._writes = writes
        self._trackers: Sequence[Tracker] = ()
        self._losses: dict[int, float] = {}  # of the validation split, by step
        self._training_losses: list[float] = []  # since the last of them
        self._files = {
            name: _Lines(workdir, name, step, writes)
            for name in (METRICS_NAME, SAMPLES_NAME)
        }
        for line in self._files[METRICS_NAME].kept:
            self._remember(line["step"], line)

    def track(self, trackers: Sequence[Tracker]) -> None:
        """Hands them, too, all that is written from now on."""
        self._trackers = trackers

    @property
    def best_step(self) -> int:
        """The step with the lowest validation loss; 0: none after the first update."""
        trained = {step: loss for step, loss in self._losses.items() if step}
        return min(trained, key=trained.__getitem__, default=0)

    @property
    def evaluations_since_best(self) -> int:
        return sum(step > self.best_step > 0 for step in self._losses)

    @property
    def lowest_validation_loss(self) -> float:
        return min(self._losses.values(), default=math.inf)

    @property
    def recent_training_loss(self) -> float:
        """The mean over the lines since the last evaluation; NaN without any."""
        losses = self._training_losses
        return sum(losses) / len(losses) if losses else math.nan

    def has_score(self, step: int) -> bool:
        return step in self._losses

    def has_sample(self, step: int) -> bool:
        return any(line["step"] == step for line in self._files[SAMPLES_NAME].kept)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes what is a finite number: JSON has no other."""
        finite = {name: v for name, v in values.items() if math.isfinite(v)}
        self._remember(step, finite)
        if not self._writes:
            return
        self._files[METRICS_NAME].add({"step": step, **finite})
        for tracker in self._trackers:
            tracker.scalars(step, finite)
        if not self._files[METRICS_NAME].is_remote:
            self.flush()

    def write_sample(self, step: int, prompt: str, text: str) -> None:
        self._files[SAMPLES_NAME].add({"step": step, "prompt": prompt, "text": text})
        for tracker in self._trackers:
            tracker.text(step, "sample", text)

    def write_histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        for tracker in self._trackers:
            tracker.histograms(step, values)

    def flush(self) -> None:
        """Writes what a bucket, where to append is to write anew, has not got yet."""
        if not self._writes:
            return
        for file in self._files.values():
            file.flush()
        for tracker in self._trackers:
            tracker.flush()

    def close(self) -> None:
        """Writes the rest, if the bucket takes it, and ends the trackers."""
        # What a run that failed has written after its checkpoint, the next one drops.
        with contextlib.suppress(UserError, TryAgainError):
            self.flush()
        for tracker in self._trackers:
            tracker.close()

    def _remember(self, step: int, values: Mapping[str, float]) -> None:
        if "loss" in values:
            self._training_losses.append(values["loss"])
        if "validation_loss" in values:
            self._losses[step] = values["validation_loss"]
            self._training_losses = []


class _Lines:
    """A file of JSON lines, each with a step, of which those after `step` are lost."""

    def __init__(self, workdir: str, name: str, step: int, writes: bool):
        self._path = path = files.join(workdir, name)
        self._unwritten = ""
        self.is_remote = files.is_remote(path)
        found = journal.lines(workdir, name, needed="step")
        self.kept = [line for line in found if step and line["step"] <= step]
        text = "".join(map(_to_text, self.kept)).encode()
        if writes and files.exists(path) and files.read(path) != text:
            files.write(path, text)

    def add(self, line: Mapping[str, Any]) -> None:
        self._unwritten += _to_text(line)

    def flush(self) -> None:
        if self._unwritten:
            files.append(self._path, self._unwritten.encode())
        self._unwritten = ""


def load(workdir: str) -> list[dict[str, Any]]:
    """Returns all metrics; a last line that was torn by a kill is left out."""
    return journal.lines(workdir, METRICS_NAME, needed="step")


def _to_text(line: Mapping[str, Any]) -> str:
    return json.dumps(line) + "\n"
