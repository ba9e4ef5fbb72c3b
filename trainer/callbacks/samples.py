"""Samples of text while a run trains."""

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
        self._trained = model.variables
        self._as_gpt2 = architecture.as_gpt2
        self._prompt = prompt
        with strategies.on_host():
            self._copy = architecture.build(model.config)
            self._gpt2 = architecture.as_gpt2(self._copy)
            self._sample = create_sampler(self._gpt2)

    def _has_acted(self, step: int) -> bool:
        return self._log.has_sample(step)

    def _act(self, step: int) -> None:
        with strategies.on_host():
            for mine, theirs in zip(self._copy.variables, self._trained, strict=True):
                mine.assign(tf.identity(theirs))
            self._as_gpt2(self._copy, self._gpt2)
            text = self._sample(self._prompt)
        self._log.write_sample(step, self._prompt, text)
