"""Scores a split: the loss summed over every token, in whatever batches."""

import dataclasses
import itertools
import math
from collections.abc import Callable

import tensorflow as tf

from tfrecords.windows import Windows
from trainer.runtime import strategy as strategies
from trainer.tasks.causal_lm import LanguageModelTask


@dataclasses.dataclass(frozen=True)
class Score:
    """Summed loss in nats, and the tokens that bear it."""

    loss_sum: float
    num_tokens: int

    @property
    def loss(self) -> float:
        return self.loss_sum / self.num_tokens

    @property
    def perplexity(self) -> float:
        """exp(sum of losses / number of tokens); never a mean of batches' means."""
        return math.exp(min(self.loss, 700.0))


class Scorer:
    """Scores one split as often as it is called; compiled once.

    Args:
      task: owns the model.
      strategy: that the model was built under.
      windows: of the split.
      batch_size: windows that a replica scores at once.
    """

    def __init__(
        self,
        task: LanguageModelTask,
        strategy: tf.distribute.Strategy,
        windows: Windows,
        *,
        batch_size: int,
    ):
        global_batch_size = batch_size * strategy.num_replicas_in_sync

        def batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
            found = windows.batches(
                global_batch_size=global_batch_size,
                batch_size=batch_size,
                host_index=context.input_pipeline_id,
                num_hosts=context.num_input_pipelines,
            )
            return strategies.mark_infinite(found)

        @tf.function
        def score_batch(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            sums = strategy.run(task.test_step, args=(batch,))
            return {
                k: strategy.experimental_local_results(v)[0] for k, v in sums.items()
            }

        self._score_batch = score_batch
        self._num_batches = math.ceil(windows.count / global_batch_size)
        self._batches = strategy.distribute_datasets_from_function(batches)

    def __call__(self, between_batches: Callable[[], None] = lambda: None) -> Score:
        sums = []
        for batch in itertools.islice(self._batches, self._num_batches):
            between_batches()
            sums.append(self._score_batch(batch))
        # float32 sums of a batch, added up in Python's float64.
        return Score(
            loss_sum=sum(float(s["loss_sum"]) for s in sums),
            num_tokens=sum(int(s["token_count"]) for s in sums),
        )
