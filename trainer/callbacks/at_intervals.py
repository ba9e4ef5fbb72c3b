"""The base of the callbacks that act every so many steps."""

from typing import Any

import tf_keras


def current_step(training_step: tf_keras.Model) -> int:
    """Returns the number of optimizer updates made so far."""
    return int(training_step.optimizer.iterations.numpy())


class AtIntervals(tf_keras.callbacks.Callback):
    """Acts when an execution has reached or passed a multiple of the interval.

    Args:
      interval: in steps; 0: only after the last step.
      num_steps: of the whole run.
    """

    def __init__(self, *, interval: int, num_steps: int):
        super().__init__()
        self._interval = interval
        self._num_steps = num_steps

    def catch_up(self, training_step: tf_keras.Model) -> None:
        """Acts before training where that is due and has not been done.

        It is due at step 0, and where a run was stopped after a step but before this
        callback acted.
        """
        self.set_model(training_step)
        step = current_step(training_step)
        due = self._interval and step % self._interval == 0
        if (due or step in (0, self._num_steps)) and not self._has_acted(step):
            self._act(step)

    def on_train_begin(self, logs: Any = None) -> None:
        """Reads at which step training begins."""
        self._last_step = current_step(self.model)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Acts where the execution has passed a multiple of the interval."""
        last_step, self._last_step = self._last_step, int(logs["step"])
        passed = self._interval and (
            self._last_step // self._interval > last_step // self._interval
        )
        if passed or self._last_step == self._num_steps:
            self._act(self._last_step)

    def _act(self, step: int) -> None:
        raise NotImplementedError

    def _has_acted(self, step: int) -> bool:
        """Returns whether this step has been acted on before."""
        return True
