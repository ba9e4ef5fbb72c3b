"""Measured values of a run: `metrics.jsonl`, `samples.jsonl` and the trackers.

A line of `metrics.jsonl` is {"step": updates made, name: value, …}; one of
`samples.jsonl` is {"step", "prompt", "text"}.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.errors import TryAgainError, UserError
from tfrecords.storage import files
from trainer.run_dir import json_files, layout

if TYPE_CHECKING:  # it imports TensorFlow
    from trainer.run_dir.trackers import Tracker

# Metrics of runs of older versions -> their names today.
_OLD_NAMES = {"memorisation": "memorization"}


class MetricsLog:
    """Appends to a run's metrics and samples.

    Args:
      workdir: folder of the run.
      step: updates made so far; lines of later steps, of a run that was interrupted
        before it saved a checkpoint, are dropped.
      writes: whether this machine writes the files; all machines know the values.
    """

    def __init__(self, workdir: str, step: int, *, writes: bool = True):
        self._writes = writes
        self._trackers: Sequence[Tracker] = ()
        self._validation_losses: dict[int, float] = {}  # by step
        self._training_losses: list[float] = []  # since the last validation loss
        self._metrics, self._samples = (
            json_files.LinesWriter(files.join(workdir, name), step, is_writer=writes)
            for name in (layout.METRICS, layout.SAMPLES)
        )
        for line in self._metrics.lines:
            self._remember(line["step"], line)

    def track(self, trackers: Sequence["Tracker"]) -> None:
        """Passes all that is written from now on to these trackers, too."""
        self._trackers = trackers

    @property
    def best_step(self) -> int:
        """The step > 0 with the lowest validation loss; 0: none was evaluated yet."""
        losses = {step: loss for step, loss in self._validation_losses.items() if step}
        return min(losses, key=losses.__getitem__, default=0)

    @property
    def evaluations_since_best(self) -> int:
        """Number of evaluations after `best_step`."""
        best = self.best_step
        return sum(step > best > 0 for step in self._validation_losses)

    @property
    def lowest_validation_loss(self) -> float:
        """The lowest validation loss so far; infinity before the first."""
        return min(self._validation_losses.values(), default=math.inf)

    @property
    def recent_training_loss(self) -> float:
        """The mean of the lines since the last evaluation; NaN without any."""
        losses = self._training_losses
        return sum(losses) / len(losses) if losses else math.nan

    def has_score(self, step: int) -> bool:
        """Whether the step was evaluated."""
        return step in self._validation_losses

    def has_sample(self, step: int) -> bool:
        """Whether the file had a sample of this step when the run continued."""
        return any(line["step"] == step for line in self._samples.lines)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the finite values of a step: JSON has no others."""
        finite = {name: v for name, v in values.items() if math.isfinite(v)}
        self._remember(step, finite)
        if not self._writes:
            return
        self._metrics.add({"step": step, **finite})
        for tracker in self._trackers:
            tracker.scalars(step, finite)
        if not self._metrics.is_remote:
            self.flush()

    def write_sample(self, step: int, prompt: str, text: str) -> None:
        """Writes a generated text, which begins with its prompt."""
        self._samples.add({"step": step, "prompt": prompt, "text": text})
        for tracker in self._trackers:
            tracker.text(step, "sample", text)

    def write_histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Passes named arrays to the trackers, which draw their distributions."""
        for tracker in self._trackers:
            tracker.histograms(step, values)

    def flush(self) -> None:
        """Writes what is buffered; in a bucket, this writes the whole files again."""
        if not self._writes:
            return
        self._metrics.flush()
        self._samples.flush()
        for tracker in self._trackers:
            tracker.flush()

    def close(self) -> None:
        """Writes the rest, if the bucket takes it, and closes the trackers."""
        # The next start drops what this one wrote after its last checkpoint.
        with contextlib.suppress(UserError, TryAgainError):
            self.flush()
        for tracker in self._trackers:
            tracker.close()

    def _remember(self, step: int, values: Mapping[str, float]) -> None:
        if "loss" in values:
            self._training_losses.append(values["loss"])
        if "validation_loss" in values:
            self._validation_losses[step] = values["validation_loss"]
            self._training_losses = []


def load(workdir: str) -> list[dict[str, Any]]:
    """Returns all lines of `metrics.jsonl`.

    Raises:
      DataError: the file is damaged.
    """
    path = files.join(workdir, layout.METRICS)
    return [
        {_OLD_NAMES.get(name, name): value for name, value in line.items()}
        for line in json_files.read_lines(path, required_field="step")
    ]
