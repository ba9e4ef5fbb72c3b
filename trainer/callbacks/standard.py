"""Keras callbacks: what the host does between executions on the device."""

import math
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras
from absl import logging
from tqdm import tqdm

from configs.errors import RunError
from tfrecords.verify import ShardChangeDetector
from trainer.checkpoints.run_checkpoints import Checkpoints
from trainer.evaluation.scoring import Scorer
from trainer.run_dir.journal import EVENT
from trainer.run_dir.metrics import MetricsLog
from trainer.runtime import strategy as strategies
from trainer.runtime.preemption import Notice
from trainer.tasks import memorization

_NUM_RECORDS = 16  # that a message lists


class Metrics(tf_keras.callbacks.Callback):
    """Logs each execution's last step, and moves the progress bar.

    Args:
      log: where the values go.
      bar: of the whole run's steps.
      tokens_per_step: global_batch_size * sequence_length.
      flops_per_step: that a step needs.
      peak_flops: of all replicas, per second; None: not known.
      strategy: whose memory tells how full it is, or not.
    """

    def __init__(
        self,
        log: MetricsLog,
        bar: tqdm,
        *,
        tokens_per_step: int,
        flops_per_step: int,
        peak_flops: float | None,
        strategy: tf.distribute.Strategy,
    ):
        super().__init__()
        self._log = log
        self._bar = bar
        self._tokens_per_step = tokens_per_step
        self._flops_per_step = flops_per_step
        self._peak_flops = peak_flops
        self._strategy = strategy

    def on_train_begin(self, logs: Any = None) -> None:
        self._step = _step(self.model)
        self._bar.unpause()  # its clock has run during the evaluation before

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        # From here, so that evaluations and saves between executions do not count.
        self._start_seconds = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        seconds = time.perf_counter() - self._start_seconds
        step = _step(self.model)
        values = {name: float(value) for name, value in logs.items()}
        values["tokens"] = step * self._tokens_per_step
        values |= self.speeds((step - self._step) / seconds)
        if in_use := strategies.hbm_bytes_in_use(self._strategy):
            values["hbm_bytes_in_use"] = in_use
        self._log.write(step, values)
        self._bar.set_postfix_str(
            f"loss {values['loss']:.3f}, {values['tokens_per_second']:,.0f} tokens/s",
            refresh=False,
        )
        self._bar.update(step - self._step)
        self._step = step

    def speeds(self, steps_per_second: float) -> dict[str, float]:
        """Returns the throughput, and its share of the peak where that is known."""
        found = {"tokens_per_second": steps_per_second * self._tokens_per_step}
        if self._peak_flops:
            found["mfu"] = steps_per_second * self._flops_per_step / self._peak_flops
        return found


class Guard(tf_keras.callbacks.Callback):
    """Stops a run whose updates are skipped, one after the other.

    Args:
      max_skipped_in_a_row: so many.
      batch_records: returns shard and number in it of each record of a `step`'s batch.
    """

    def __init__(
        self,
        max_skipped_in_a_row: int,
        batch_records: Callable[..., list[tuple[str, int]]],
    ):
        super().__init__()
        self._max_skipped_in_a_row = max_skipped_in_a_row
        self._batch_records = batch_records

    def on_train_begin(self, logs: Any = None) -> None:
        self._skipped = int(self.model.skipped_updates.numpy())

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        step = _step(self.model)
        skipped, self._skipped = self._skipped, int(logs["skipped_updates"])
        if self._skipped > skipped:
            logging.warning(
                "step %d: loss or gradient was no finite number; %d updates were "
                "skipped so far",
                step,
                self._skipped,
            )
        if logs["skipped_in_a_row"] < self._max_skipped_in_a_row:
            return
        records = "".join(
            f"\n  {name}, record {number}"
            for name, number in self._batch_records(step=step - 1)[:_NUM_RECORDS]
        )
        raise RunError(
            f"The last {int(logs['skipped_in_a_row'])} updates, up to step {step}, "
            f"were skipped: the loss is {float(logs['loss'])}, the gradient's norm "
            f"{float(logs['gradient_norm'])}. Start again in a new --workdir with a "
            "smaller `optimizer.learning_rate`, a longer warmup, or "
            "`optimizer.clip_norm=1`; or look at the records, of which the last batch "
            f"had:{records}\nby `python -m tfrecords.inspect`."
        )


class AtIntervals(tf_keras.callbacks.Callback):
    """Acts whenever an execution has reached or passed a multiple of the interval.

    Args:
      interval: in steps; 0: only after the last step.
      num_steps: of the whole run.
    """

    def __init__(self, *, interval: int, num_steps: int):
        super().__init__()
        self._interval = interval
        self._num_steps = num_steps

    def catch_up(self, task: tf_keras.Model) -> None:
        """Acts before training where that is due and has not been done.

        At step 0, and where a run was stopped after a step, but before this was done.
        """
        self.set_model(task)
        step = _step(task)
        due = self._interval and step % self._interval == 0
        if (due or step in (0, self._num_steps)) and not self._has_acted(step):
            self._act(step)

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

    def _has_acted(self, step: int) -> bool:
        """Whether nothing of this step is to be caught up."""
        return True


class Evaluation(AtIntervals):
    """Scores the validation split before step 1, at intervals, and after the last.

    Args:
      log: where the scores go.
      scorer: of the split.
      notice: stops the run, also while it scores.
      patience: scores without a better one, after which training ends; 0: never.
      **intervals: see above.
    """

    def __init__(
        self,
        log: MetricsLog,
        scorer: Scorer,
        notice: Notice,
        *,
        patience: int,
        **intervals: int,
    ):
        super().__init__(**intervals)
        self._log = log
        self._scorer = scorer
        self._notice = notice
        self._patience = patience

    def _has_acted(self, step: int) -> bool:
        return self._log.has_score(step)

    def _act(self, step: int) -> None:
        score = self._scorer(between_batches=self._notice.check)
        logging.info("step %d: validation perplexity %.2f", step, score.perplexity)
        by_heart = memorization.level(
            self._log.recent_training_loss,
            score.loss,
            self._log.lowest_validation_loss,
        )
        if by_heart:
            logging.log(
                logging.ERROR if by_heart > 1 else logging.WARNING,
                "step %d: the model learns the training text by heart: its perplexity "
                "there is %.2f, and the validation loss rises, %.3f after %.3f. The "
                "best checkpoint stays; stop, or take more text",
                step,
                math.exp(self._log.recent_training_loss),
                score.loss,
                self._log.lowest_validation_loss,
            )
        self._log.write(
            step,
            {
                "validation_loss": score.loss,
                "validation_perplexity": score.perplexity,
                "memorisation": by_heart,
            },
        )
        if self._patience and self._log.evaluations_since_best >= self._patience:
            logging.info(
                "stopping: the lowest validation loss was that of step %d",
                self._log.best_step,
                extra=EVENT,
            )
            self.model.stop_training = True


class Saving(AtIntervals):
    """Saves at intervals, after the last step, and when a score is the best so far.

    Args:
      log: of the metrics.
      checkpoints: of the run.
      watch: what was trained on shards that changed meanwhile is not saved.
      **intervals: see above.
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

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._checkpoints.raise_failure()
        super().on_train_batch_end(batch, logs)
        if self._last_step == self._log.best_step or self.model.stop_training:
            self._act(self._last_step)

    def _act(self, step: int) -> None:
        self._watch.check()
        # What a continued run goes on from holds all metrics up to there.
        self._log.flush()
        self._checkpoints.save(self._log.best_step)


def _step(task: tf_keras.Model) -> int:
    return int(task.optimizer.iterations.numpy())
