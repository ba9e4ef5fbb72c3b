"""Stops a run whose loss or gradients are not finite, step after step."""

from collections.abc import Callable
from typing import Any

import tf_keras
from absl import logging

from configs.errors import RunError
from trainer.callbacks.at_intervals import current_step

_NUM_RECORDS = 16  # that a message lists


class DivergenceGuard(tf_keras.callbacks.Callback):
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
        step = current_step(self.model)
        skipped, self._skipped = self._skipped, int(logs["skipped_updates"])
        if self._skipped > skipped:
            logging.warning(
                "step %d: loss or gradient was not finite; %d updates were "
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
