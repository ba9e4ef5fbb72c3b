"""Logs the metrics of each execution's last step, and moves the progress bar."""

import time
from typing import Any

import tensorflow as tf
import tf_keras
from tqdm import tqdm

from trainer.callbacks.at_intervals import current_step
from trainer.run_dir.metrics import MetricsLog
from trainer.runtime import strategy as strategies


class Metrics(tf_keras.callbacks.Callback):
    """Logs each execution's last step, and moves the progress bar.

    Args:
      log: where the values go.
      bar: of the whole run's steps.
      tokens_per_step: global_batch_size * sequence_length.
      flops_per_step: FLOPs of a step's matrix products.
      peak_flops: FLOP/s of all replicas; None: not known.
      strategy: of the run, whose first replica's memory is logged where it is known.
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
        """Starts the bar's clock, which ran during the evaluation before training."""
        self._step = current_step(self.model)
        self._bar.unpause()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Starts the clock: evaluations and saves between executions do not count."""
        self._start_seconds = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Logs loss, rates and throughput."""
        seconds = time.perf_counter() - self._start_seconds
        values = {name: float(value) for name, value in logs.items()}
        step = int(values.pop("step"))
        values["tokens"] = step * self._tokens_per_step
        values |= self.speeds((step - self._step) / seconds)
        if num_bytes := strategies.hbm_bytes_in_use(self._strategy):
            values["hbm_bytes_in_use"] = num_bytes
        self._log.write(step, values)
        self._bar.set_postfix_str(
            f"loss {values['loss']:.3f}, {values['tokens_per_second']:,.0f} tokens/s",
            refresh=False,
        )
        self._bar.update(step - self._step)
        self._step = step

    def speeds(self, steps_per_second: float) -> dict[str, float]:
        """Returns the throughput, and its share of the peak where that is known."""
        speeds = {"tokens_per_second": steps_per_second * self._tokens_per_step}
        if self._peak_flops:
            speeds["mfu"] = steps_per_second * self._flops_per_step / self._peak_flops
        return speeds
