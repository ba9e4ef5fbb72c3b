"""Keras callbacks: what the host does between executions on the device."""

import math
import sys
import time
from typing import Any

import tf_keras
from absl import logging
from tqdm import tqdm

from trainer.checkpoint import Checkpoints
from trainer.metrics import MetricsLog
from trainer.scoring import Scorer


class DivergenceError(ValueError):
    """The loss is no number any more; what was saved before it still is."""

    exit_code = 1


class Metrics(tf_keras.callbacks.Callback):
    """Logs each execution's last step, and draws the progress bar.

    Args:
      log: where the values go.
      num_steps: of the whole run.
      tokens_per_step: global_batch_size * sequence_length.
    """

    def __init__(self, log: MetricsLog, *, num_steps: int, tokens_per_step: int):
        super().__init__()
        self._log = log
        self._num_steps = num_steps
        self._tokens_per_step = tokens_per_step

    def on_train_begin(self, logs: Any = None) -> None:
        self._step = _step(self.model)
        self._bar = tqdm(
            desc="train",
            total=self._num_steps,
            initial=self._step,
            unit="step",
            file=sys.stderr,
        )

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        # From here, so that evaluations and saves between executions do not count.
        self._start_seconds = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        seconds = time.perf_counter() - self._start_seconds
        step = _step(self.model)
        num_tokens = (step - self._step) * self._tokens_per_step
        values = {name: float(value) for name, value in logs.items()}
        if not math.isfinite(values["loss"] + values["gradient_norm"]):
            # Before anything of it is saved: this callback comes first.
            raise DivergenceError(
                f"The loss at step {step} is {values['loss']}, the gradient's norm "
                f"{values['gradient_norm']}. Start again in a new --workdir with a "
                "smaller `optimizer.learning_rate`, a longer warmup, or "
                "`optimizer.clip_norm=1`."
            )
        values["tokens"] = step * self._tokens_per_step
        values["tokens_per_second"] = num_tokens / seconds
        self._log.write(step, values)
        self._bar.set_postfix_str(
            f"loss {values['loss']:.3f}, {values['tokens_per_second']:,.0f} tokens/s",
            refresh=False,
        )
        self._bar.update(step - self._step)
        self._step = step

    def on_train_end(self, logs: Any = None) -> None:
        self._bar.close()


class _AtIntervals(tf_keras.callbacks.Callback):
    """Acts whenever an execution has reached or passed a multiple of the interval.

    Args:
      interval: in steps; 0: only after the last step.
      num_steps: of the whole run.
    """

    def __init__(self, *, interval: int, num_steps: int):
        super().__init__()
        self._interval = interval
        self._num_steps = num_steps

    def on_train_begin(self, logs: Any = None) -> None:
        self._last_step = _step(self.model)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        last_step, self._last_step = self._last_step, _step(self.model)
        passed = self._interval and (
            self._last_step // self._interval > last_step // self._interval
        )
        if passed or self._last_step == self._num_steps:
            self._act(self._last_step)

    def _act(self, step: int) -> None:
        raise NotImplementedError


class Evaluation(_AtIntervals):
    """Scores the validation split before step 1, at intervals, and after the last.

    Args:
      log: where the scores go.
      scorer: of the split.
      patience: scores without a better one, after which training ends; 0: never.
      **intervals: see above.
    """

    def __init__(
        self, log: MetricsLog, scorer: Scorer, *, patience: int, **intervals: int
    ):
        super().__init__(**intervals)
        self._log = log
        self._scorer = scorer
        self._patience = patience

    def on_train_begin(self, logs: Any = None) -> None:
        super().on_train_begin(logs)
        if self._last_step == 0:
            self._act(0)

    def _act(self, step: int) -> None:
        score = self._scorer()
        logging.info("step %d: validation perplexity %.2f", step, score.perplexity)
        self._log.write(
            step,
            {
                "validation_loss": score.loss,
                "validation_perplexity": score.perplexity,
            },
        )
        if self._patience and self._log.evaluations_since_best >= self._patience:
            logging.info(
                "stopping: the lowest validation loss was that of step %d",
                self._log.best_step,
            )
            self.model.stop_training = True


class Saving(_AtIntervals):
    """Saves at intervals, after the last step, and when a score is the best so far."""

    def __init__(self, log: MetricsLog, checkpoints: Checkpoints, **intervals: int):
        super().__init__(**intervals)
        self._log = log
        self._checkpoints = checkpoints

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._checkpoints.raise_failure()
        super().on_train_batch_end(batch, logs)
        if self._last_step == self._log.best_step or self.model.stop_training:
            self._act(self._last_step)

    def _act(self, step: int) -> None:
        self._checkpoints.save(self._log.best_step)


def _step(model: tf_keras.Model) -> int:
    return int(model.optimizer.iterations.numpy())
