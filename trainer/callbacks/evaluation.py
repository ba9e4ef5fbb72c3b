"""Scores the validation split while a run trains."""

import math
from collections.abc import Callable

from absl import logging

from trainer.callbacks.at_intervals import AtIntervals
from trainer.run_dir.journal import EVENT
from trainer.run_dir.metrics import MetricsLog
from trainer.tasks.task import Task

# Returns the sums of the task over the split; its argument is called between batches.
Scorer = Callable[[Callable[[], None]], dict[str, float]]


class Evaluation(AtIntervals):
    """Scores the validation split before step 1, at intervals, and after the last.

    Args:
      log: where the figures go.
      scorer: returns the sums over the split.
      task: makes figures of the sums.
      between_batches: called between two batches; may end the run.
      patience: evaluations without a lower loss, after which training ends; 0: never.
      lowest_loss: a lower one is too good to be true; None: not known.
      **intervals: of `AtIntervals`.
    """

    def __init__(
        self,
        log: MetricsLog,
        scorer: Scorer,
        task: Task,
        between_batches: Callable[[], None],
        *,
        patience: int,
        lowest_loss: float | None = None,
        **intervals: int,
    ):
        super().__init__(**intervals)
        self._log = log
        self._scorer = scorer
        self._task = task
        self._between_batches = between_batches
        self._patience = patience
        self._lowest_loss = lowest_loss

    def _has_acted(self, step: int) -> bool:
        return self._log.has_score(step)

    def _act(self, step: int) -> None:
        figures = self._task.figures(self._scorer(self._between_batches))
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        logging.info("step %d: validation %s", step, shown)
        values = {f"validation_{name}": value for name, value in figures.items()}
        if self._task.memorization:
            level = self._task.memorization(
                self._log.recent_training_loss,
                figures["loss"],
                self._log.lowest_validation_loss,
            )
            self._warn_of_memorization(step, level, figures["loss"])
            values["memorization"] = level
        if self._lowest_loss is not None:
            is_too_good = figures["loss"] < self._lowest_loss
            self._warn_of_leak(step, is_too_good, figures["loss"])
            values["too_good"] = int(is_too_good)
        self._log.write(step, values)
        if self._patience and self._log.evaluations_since_best >= self._patience:
            logging.info(
                "stopping: the lowest validation loss was that of step %d",
                self._log.best_step,
                extra=EVENT,
            )
            self.model.stop_training = True

    def _warn_of_leak(self, step: int, is_too_good: bool, loss: float) -> None:
        if is_too_good:
            logging.error(
                "step %d: the validation loss of %.3f is too good to be true: the "
                "text's own bigrams make %.3f plausible. The model may see what it is "
                "to predict, or the validation text may be part of the training text. "
                "Look at a sample",
                step,
                loss,
                self._lowest_loss,
            )

    def _warn_of_memorization(self, step: int, level: int, loss: float) -> None:
        if not level:
            return
        logging.log(
            logging.ERROR if level > 1 else logging.WARNING,
            "step %d: the model memorizes the training text: its perplexity there is "
            "%.2f, and the validation loss rises, %.3f after %.3f. The best checkpoint "
            "stays; stop, or use more text",
            step,
            math.exp(self._log.recent_training_loss),
            loss,
            self._log.lowest_validation_loss,
        )
