"""Histograms of the weights while a run trains."""

import tensorflow as tf

from trainer.callbacks.at_intervals import AtIntervals
from trainer.checkpoints import tensor_file
from trainer.run_dir.metrics import MetricsLog
from trainer.runtime import strategy as strategies


class Histograms(AtIntervals):
    """Gives the weights to the trackers at intervals, and after the last step.

    Args:
      log: of the run, which has the trackers.
      **intervals: of `AtIntervals`.
    """

    def __init__(self, log: MetricsLog, **intervals: int):
        super().__init__(**intervals)
        self._log = log

    def _act(self, step: int) -> None:
        variables = tensor_file.named("model", self.model.model.variables)
        with strategies.on_host():
            values = {
                name: tf.identity(variable).numpy()
                for name, variable in variables.items()
            }
        self._log.write_histograms(step, values)
