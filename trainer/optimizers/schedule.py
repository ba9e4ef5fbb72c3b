"""The number of steps of a run, and the learning rate of each."""

import math

import tensorflow as tf
import tf_keras
from absl import logging

from configs.errors import UserError
from configs.schema import Config, OptimizerConfig, TrainingConfig
from tfrecords.manifest import Manifest


def total_steps(config: TrainingConfig, manifest: Manifest) -> int:
    """Returns the steps of the whole run.

    A step that crosses the end of an epoch takes its other records from the next one.
    """
    records = config.num_epochs * manifest.split("train").num_records
    return config.num_steps or math.ceil(records / config.global_batch_size)


def check_intervals(config: Config, num_steps: int) -> None:
    """Checks what depends on the number of steps, when that is known.

    Warns of intervals that are longer than the run.

    Args:
      config: of the run.
      num_steps: of the whole run.

    Raises:
      UserError: the learning rate would never reach its peak.
    """
    warmup = config.optimizer.warmup_steps
    if warmup >= num_steps and config.optimizer.schedule != "relative_step":
        raise UserError(
            "`optimizer.warmup_steps` must be less than the steps of the run. "
            f"Received: {warmup} and {num_steps}. Lower the warmup, or raise "
            "`training.num_epochs` or `training.num_steps`."
        )
    for name in ("evaluation_interval", "checkpoint_interval"):
        interval = getattr(config.training, name)
        if interval > num_steps:
            logging.warning(
                "`training.%s` is %d, and the run has %d steps: it acts at the end",
                name,
                interval,
                num_steps,
            )


class Schedule(tf_keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate of an `OptimizerConfig` over a run of `num_steps`.

    No step has a rate of 0: the first of w warmup steps has 1/w of the peak, and the
    linear decay reaches its end one step after the last.

    Args:
      config: schedule, peak and final rate, and warmup.
      num_steps: of the whole run.
    """

    def __init__(self, config: OptimizerConfig, num_steps: int):
        self.config = config
        self.num_steps = num_steps
        warmup = config.warmup_steps or math.ceil(config.warmup_fraction * num_steps)
        self.warmup_steps = 0 if config.schedule == "relative_step" else warmup
        fraction = config.decay_fraction if config.schedule == "wsd" else 1.0
        self.decay_steps = math.ceil(fraction * num_steps)

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the rate of the update after `step` updates, float32 []."""
        step = tf.cast(step, tf.float32)
        peak = self.config.learning_rate
        warmup = float(self.warmup_steps)
        rate = tf.cast(self._after_warmup(step, peak, warmup), tf.float32)
        if not warmup:
            return rate
        return tf.where(step < warmup, peak * (step + 1.0) / warmup, rate)

    def _after_warmup(self, step: tf.Tensor, peak: float, warmup: float) -> tf.Tensor:
        name, final = self.config.schedule, self.config.final_learning_rate
        if name == "constant":
            return tf.fill([], peak)
        if name == "inverse_sqrt":
            return peak * tf.sqrt(max(warmup, 1.0) / tf.maximum(step + 1.0, warmup))
        if name == "relative_step":
            # Shazeer and Stern (2018), algorithm 5: rho_t = min(10^-2, 1/sqrt(t)).
            return tf.minimum(peak, tf.math.rsqrt(step + 1.0))
        start = max(warmup, self.num_steps - self.decay_steps)
        done = (step - start) / max(self.num_steps - start, 1.0)
        done = tf.clip_by_value(done, 0.0, 1.0)
        if name == "cosine":
            # Loshchilov and Hutter, "SGDR" (2017), equation 5, without restarts.
            return final + (peak - final) * 0.5 * (1.0 + tf.cos(math.pi * done))
        if name == "wsd":
            # Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed
            # Training Durations" (2024), arXiv:2405.18392, section 3.2: 1 - sqrt loses
            # less than a line.
            done = tf.sqrt(done)
        return final + (peak - final) * (1.0 - done)
