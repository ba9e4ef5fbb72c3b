"""Stops a run whose loss or gradients stay not finite."""

from collections.abc import Callable
from typing import Any

import tf_keras
from absl import logging

from configs.errors import RunError

_NUM_RECORDS = 16  # that a message lists


class DivergenceGuard(tf_keras.callbacks.Callback):
    """Stops a run after a number of consecutive skipped updates.

    Args:
      max_skipped_in_a_row: the number.
      batch_records: `step` -> (shard, index in the shard) of each record of its batch.
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
        """Reads how many updates were skipped before."""
        self._skipped = int(self.model.skipped_updates.numpy())

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Warns of skipped updates; raises RunError after too many."""
        step = logs["step"]
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
