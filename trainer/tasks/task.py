"""What a task is: which features it reads, its loss, and its figures."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from configs.schema import TrainingConfig
from tfrecords import schema
from tfrecords.manifest import Manifest, Split

# What the loss of a batch is computed from: feature -> int32 [B, …].
Batch = Mapping[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Task:
    """What is learnt. The step, checkpoints and plans are the same for all tasks.

    Attributes:
      name: the value of `training.task`.
      features: of a record, beside `tokens`, each int32 [B]; "mask" is int32 [B, T].
      summed_loss: (Architecture, model, Batch, Options, Dropout) -> the loss summed
        over a microbatch and the weight that it is divided by, both float32 []. The
        step sums both over all microbatches and replicas before it divides. Of what a
        task draws by chance, the noise is a hash of the dropout's keys, which depend on
        (seed, step, row).
      evaluation_sums: (Architecture, model, Batch, Options) -> float32 sums over a
        batch of evaluation, which also has the feature `first`, int32 [B]: the first
        token of each row that bears loss.
      figures: sums over the whole split -> figures by name, of which "loss" decides
        which checkpoint is the best.
      split_figures: (sums, manifest's Split) -> figures that `evaluate` prints.
      memorization: (training loss, validation loss, lowest validation loss) -> 0, or
        the level of the alarm. None: the task cannot tell, since its loss is not that
        of predicting the text's tokens.
      predictions: (Architecture, model, Batch, Options, Dropout) -> `dtype` [B, P, C]
        and bool [B, P, T]: the hidden states whose products with the output table are
        the predictions, and whether a prediction must not depend on a token. None: the
        task predicts no tokens that it must not see.
      of_run: (task, settings, dataset) -> the task as a run learns it. Raises DataError
        where the dataset does not fit. None: it depends on neither.
      classifies: whether the model has a head for the dataset's labels.
    """

    name: str
    features: tuple[str, ...]
    summed_loss: Callable[..., tuple[tf.Tensor, tf.Tensor]]
    evaluation_sums: Callable[..., dict[str, tf.Tensor]]
    figures: Callable[[Mapping[str, Any]], dict[str, float]]
    split_figures: Callable[[Mapping[str, Any], Split], dict[str, Any]]
    memorization: Callable[[float, float, float], int] | None = None
    predictions: Callable[..., tuple[tf.Tensor, tf.Tensor]] | None = None
    of_run: Callable[["Task", TrainingConfig, Manifest], "Task"] | None = None
    classifies: bool = False

    def resolve(self, settings: TrainingConfig, manifest: Manifest) -> "Task":
        """Returns the task as a run learns it: see `of_run`."""
        return self.of_run(self, settings, manifest) if self.of_run else self

    def labels(self, manifest: Manifest) -> tuple[str, ...]:
        """Returns the labels that the model's head is for; () without a head."""
        return manifest.labels if self.classifies else ()

    def signature(self, batch_size: int, sequence_length: int) -> dict:
        """Returns the specification of a training batch, `row` included.

        Args:
          batch_size: records of a replica's part of a step.
          sequence_length: tokens of a record.
        """
        rows = tf.TensorSpec([batch_size], tf.int32)
        tokens = tf.TensorSpec([batch_size, sequence_length], tf.int32)
        specs = {"tokens": tokens, **dict.fromkeys([*self.features, "row"], rows)}
        return specs | dict.fromkeys({schema.MASK} & specs.keys(), tokens)
