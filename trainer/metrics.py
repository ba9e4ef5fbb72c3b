"""What a run measures, as JSON lines in `WORKDIR/metrics.jsonl` and in TensorBoard.

A line is {"step": …, and the values that were measured after that many updates}.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from etils import epath

from tfrecords import storage

FILE_NAME = "metrics.jsonl"


class MetricsLog:
    """Appends to a run's metrics.

    Args:
      workdir: of the run.
      step: updates made so far; what a lost continuation wrote after it is dropped.
      writes: whether this machine writes them; all know them.
    """

    def __init__(self, workdir: str, step: int, *, writes: bool = True):
        self._path = epath.Path(workdir) / FILE_NAME
        self._writes = writes
        kept = [line for line in load(workdir) if step and line["step"] <= step]
        self._unwritten = ""
        self._losses: dict[int, float] = {}  # of the validation split, by step
        self._training_losses: list[float] = []  # since the last of them
        for line in kept:
            self._remember(line["step"], line)
        if not writes:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._summaries = tf.summary.create_file_writer(
            str(epath.Path(workdir) / "tensorboard"),
            # Not before it is told to: in a bucket, each time is a new file.
            max_queue=1_000_000,
            flush_millis=3_600_000,
        )
        partial = self._path.with_name(f"{FILE_NAME}.partial")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
        partial.replace(self._path)

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

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._remember(step, values)
        if not self._writes:
            return
        self._unwritten += json.dumps({"step": step, **values}) + "\n"
        with self._summaries.as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        if not storage.is_remote(str(self._path)):
            self.flush()

    def _remember(self, step: int, values: Mapping[str, float]) -> None:
        if "loss" in values:
            self._training_losses.append(values["loss"])
        if "validation_loss" in values:
            self._losses[step] = values["validation_loss"]
            self._training_losses = []

    def flush(self) -> None:
        """Writes what a bucket, where to append is to write anew, has not got yet."""
        if not self._writes:
            return
        with self._path.open("a") as stream:
            stream.write(self._unwritten)
        self._unwritten = ""
        self._summaries.flush()


def load(workdir: str) -> list[dict[str, Any]]:
    """Returns all lines; a last line that was torn by a kill is left out."""
    path = epath.Path(workdir) / FILE_NAME
    lines = []
    for text in path.read_text().split("\n")[:-1] if path.exists() else []:
        lines.append(json.loads(text))
    return lines
