"""Sums a task's loss and weights over every record of a split."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from configs.progress import progress
from trainer.checkpoints.pretrained import Pretrained
from trainer.runtime import distributed_input
from trainer.tasks.create import computation
from trainer.tasks.step import TrainingStep
from trainer.tasks.task import Task


class Windows(Protocol):
    """What is scored: `tfrecords.windows.Windows`, or the like."""

    count: int

    def batches(
        self,
        *,
        global_batch_size: int,
        batch_size: int,
        host_index: int,
        num_hosts: int,
    ) -> tf.data.Dataset:
        """Returns one host's batches, all of the same shape."""


def scoring_step(
    trained: Pretrained,
    strategy: tf.distribute.Strategy,
    precision: str,
    task: Task,
    end_of_text_id: int,
) -> TrainingStep:
    """Returns a step that evaluates a model by a task, with its own attention.

    Args:
      trained: the model, built under `strategy`.
      strategy: that scores.
      precision: of the matrix products.
      task: gives the sums.
      end_of_text_id: the last token of each document that is scored.
    """
    end_token = end_of_text_id if trained.attention == "document" else None
    with strategy.scope():
        return TrainingStep(
            trained.model,
            trained.architecture,
            task,
            **computation(
                trained.architecture, strategy, precision, end_token=end_token
            ),
        )


class Scorer:
    """Sums over one split each time it is called; compiled once.

    Args:
      training_step: owns the model and its task.
      strategy: that the model was built under.
      windows: of the split.
      batch_size: windows that a replica scores at once.
    """

    def __init__(
        self,
        training_step: TrainingStep,
        strategy: tf.distribute.Strategy,
        windows: Windows,
        *,
        batch_size: int,
    ):
        global_batch_size = batch_size * strategy.num_replicas_in_sync

        def batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
            return windows.batches(
                global_batch_size=global_batch_size,
                batch_size=batch_size,
                host_index=context.input_pipeline_id,
                num_hosts=context.num_input_pipelines,
            )

        @functools.partial(tf.function, autograph=False)
        def score_batch(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            sums = strategy.run(training_step.test_step, args=(batch,))
            return {
                name: strategy.experimental_local_results(value)[0]
                for name, value in sums.items()
            }

        self._strategy = strategy
        self._score_batch = score_batch
        self._num_batches = math.ceil(windows.count / global_batch_size)
        self._batches = distributed_input.distribute(strategy, batches)

    def batches(
        self, between_batches: Callable[[], None] = lambda: None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields the task's sums of each batch, when all batches are scored.

        Args:
          between_batches: called before each batch.
        """
        sums = []
        num = self._num_batches
        with (
            # Keras calls callbacks under the scope. A call outside of it would be
            # traced and compiled a second time.
            self._strategy.scope(),
            progress("evaluate", num, "batch", delay=1, leave=False) as bar,
        ):
            for batch in itertools.islice(self._batches, num):
                between_batches()
                sums.append(self._score_batch(batch))
                bar.update()
        # Not before the end, so that the device does not wait for the host after each
        # batch.
        for batch in sums:
            yield {name: value.numpy() for name, value in batch.items()}

    def __call__(
        self, between_batches: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """Returns the task's sums over the whole split, float64; see `batches`."""
        # float32 sums of a batch.
        sums = list(self.batches(between_batches))
        return {
            name: sum(np.asarray(batch[name], np.float64) for batch in sums)
            for name in sums[0]
        }
