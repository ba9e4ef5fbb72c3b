"""Samples of text while a run trains."""

import functools
from collections.abc import Callable

import tensorflow as tf
import tf_keras

from trainer.callbacks.at_intervals import AtIntervals
from trainer.models.architecture import Architecture
from trainer.run_dir.metrics import MetricsLog
from trainer.runtime import strategy as strategies


class Samples(AtIntervals):
    """Continues a prompt before step 1, at intervals and after the last, on the host.

    The sample before step 1 shows what cannot work at once, not after an hour.

    Create it outside of the strategy's scope, within which its copy of the model would
    be one on every replica.

    Args:
      log: where the samples go.
      model: the model that is trained.
      architecture: of the model.
      create_sampler: GPT-2 with the model's weights -> function that continues the
        prompt, always with the same noise, so that only the model differs from sample
        to sample.
      prompt: the prompt.
      **intervals: of `AtIntervals`.
    """

    def __init__(
        self,
        log: MetricsLog,
        model: tf_keras.Model,
        architecture: Architecture,
        create_sampler: Callable[[tf_keras.Model], Callable[[str], str]],
        prompt: str,
        **intervals: int,
    ):
        super().__init__(**intervals)
        self._log = log
        self._prompt = prompt
        with strategies.on_host():
            gpt2 = architecture.as_transformers(architecture.build(model.config))
            self._sample = create_sampler(gpt2)

        # One function: each variable read by itself would wait for the device.
        @functools.partial(tf.function, autograph=False)
        def copy_weights() -> None:
            architecture.as_transformers(model, gpt2)

        self._copy_weights = copy_weights

    def _has_acted(self, step: int) -> bool:
        return self._log.has_sample(step)

    def _act(self, step: int) -> None:
        with strategies.on_host():
            self._copy_weights()
            text = self._sample(self._prompt)
        self._log.write_sample(step, self._prompt, text)
