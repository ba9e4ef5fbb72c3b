"""Histograms of the trained weights while a run trains."""

import functools

from trainer.callbacks.at_intervals import AtIntervals
from trainer.checkpoints import tensor_file
from trainer.run_dir.metrics import MetricsLog


class Histograms(AtIntervals):
    """Gives the trained weights to the trackers at intervals, and after the last step.

    Args:
      log: of the run, which has the trackers.
      **intervals: of `AtIntervals`.
    """

    def __init__(self, log: MetricsLog, **intervals: int):
        super().__init__(**intervals)
        self._log = log

    @functools.cached_property
    def _weights(self) -> tensor_file.HostCopy:
        return tensor_file.HostCopy(tensor_file.named("model", self.model.trained))

    def _act(self, step: int) -> None:
        self._log.write_histograms(step, self._weights.take())
