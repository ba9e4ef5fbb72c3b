"""Saves the run's state between executions."""

import statistics
import time
from typing import Any

from tfrecords.verify import ShardChangeDetector
from trainer.callbacks.at_intervals import AtIntervals
from trainer.checkpoints.run_checkpoints import Checkpoints
from trainer.run_dir.metrics import MetricsLog


class Saving(AtIntervals):
    """Saves at intervals, after the last step, and when a score is the best so far.

    Args:
      log: of the metrics.
      checkpoints: of the run.
      watch: stops the run where shards have changed; nothing is saved then.
      **intervals: of `AtIntervals`.
    """

    def __init__(
        self,
        log: MetricsLog,
        checkpoints: Checkpoints,
        watch: ShardChangeDetector,
        **intervals: int,
    ):
        super().__init__(**intervals)
        self._log = log
        self._checkpoints = checkpoints
        self._watch = watch
        self._seconds: list[float] = []

    @property
    def mean_seconds(self) -> float:
        """The time by which a save held the training up; 0 before the first."""
        return statistics.fmean(self._seconds or [0.0])

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Saves where that is due; raises RunError where the last save failed."""
        self._checkpoints.raise_failure()
        super().on_train_batch_end(batch, logs)
        if self._last_step == self._log.best_step or self.model.stop_training:
            self._act(self._last_step)

    def save(self) -> None:
        """Saves the metrics and the state; raises where shards have changed."""
        start = time.perf_counter()
        self._watch.check()
        # A resumed run finds all metrics up to its checkpoint.
        self._log.flush()
        self._checkpoints.save(self._log.best_step)
        self._seconds.append(time.perf_counter() - start)

    def wait(self) -> None:
        """Waits until the last save is complete; raises RunError where it failed."""
        self._checkpoints.close()

    def _act(self, step: int) -> None:
        del step
        self.save()
