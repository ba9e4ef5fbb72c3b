"""Keras callbacks for people's eyes: samples of text, histograms of the weights."""

import tensorflow as tf
from transformers import TFGPT2LMHeadModel

from configs.schema import TrackingConfig
from trainer.callbacks.standard import AtIntervals
from trainer.checkpoints import tensor_file
from trainer.generation.decoding import Settings
from trainer.generation.sampling import Sampler
from trainer.models.gpt2 import weights
from trainer.run_dir.metrics import MetricsLog
from trainer.runtime import strategy as strategies


class Samples(AtIntervals):
    """Continues a prompt before step 1, at intervals and after the last, on the CPU.

    Before step 1, too, so that what cannot work does not fail after an hour.

    It is made outside of the strategy's scope, within which its copy of the model would
    be one on every replica.

    Args:
      log: where the samples go.
      gpt2: the model that is trained.
      config: prompt and length.
      tokenizer: a folder.
      seed: the same noise each time, so that what differs is the model.
      **intervals: of `AtIntervals`.
    """

    def __init__(
        self,
        log: MetricsLog,
        gpt2: TFGPT2LMHeadModel,
        config: TrackingConfig,
        tokenizer: str,
        seed: int,
        **intervals: int,
    ):
        super().__init__(**intervals)
        self._log = log
        self._trained = gpt2.variables
        self._config = config
        self._seed = seed
        with strategies.on_host():
            self._copy = weights.from_shape(gpt2.config)
            self._sampler = Sampler(
                self._copy,
                weights.load_tokenizer(tokenizer),
                Settings(config.sample_tokens, temperature=0.8, top_k=40),
            )

    def _has_acted(self, step: int) -> bool:
        return self._log.has_sample(step)

    def _act(self, step: int) -> None:
        with strategies.on_host():
            for mine, theirs in zip(self._copy.variables, self._trained, strict=True):
                mine.assign(tf.identity(theirs))
            prompt = self._config.sample_prompt
            ((text,),) = self._sampler([prompt], seed=self._seed)
        self._log.write_sample(step, prompt, text)


class Histograms(AtIntervals):
    """Hands the weights to the trackers at intervals, and after the last step."""

    def __init__(self, log: MetricsLog, **intervals: int):
        super().__init__(**intervals)
        self._log = log

    def _act(self, step: int) -> None:
        weights = tensor_file.named("model", self.model.gpt2.variables)
        with strategies.on_host():
            values = {
                name: tf.identity(variable).numpy()
                for name, variable in weights.items()
            }
        self._log.write_histograms(step, values)
