"""What does not change while a run trains, and the batches that it reads."""

import dataclasses

import tensorflow as tf

from configs.schema import Config
from tfrecords import reader
from tfrecords.manifest import Manifest
from trainer.runtime import distributed_input
from trainer.runtime import strategy as strategies


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
      config: resolved for the hardware.
      data_dir: folder of the dataset.
      workdir: folder of the run.
      manifest: of the dataset.
      strategy: that the model is built under.
      hardware: of the strategy.
      num_steps: optimizer steps of the whole run.
    """

    config: Config
    data_dir: str
    workdir: str
    manifest: Manifest
    strategy: tf.distribute.Strategy
    hardware: strategies.DetectedHardware
    num_steps: int

    @property
    def tokens_per_step(self) -> int:
        """global_batch_size * sequence_length."""
        return self.config.training.global_batch_size * self.manifest.sequence_length

    def batches(self, start_step: int) -> tf.distribute.DistributedDataset:
        """Returns the batches of the steps from `start_step` to the last."""
        settings = self.config.training
        size = settings.global_batch_size

        def host_batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
            return reader.training_batches(
                self.data_dir,
                self.manifest,
                global_batch_size=size,
                batch_size=size // context.num_replicas_in_sync,
                start_step=start_step,
                num_steps=self.num_steps,
                seed=settings.seed,
                host_index=context.input_pipeline_id,
                num_hosts=context.num_input_pipelines,
            )

        return distributed_input.distribute(self.strategy, host_batches)
