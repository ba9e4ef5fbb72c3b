"""The Keras model that owns the step: accumulate, reduce once, divide, apply."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras
from absl import logging
from transformers import TFGPT2LMHeadModel

from configs.schema import Config
from tfrecords.manifest import Manifest
from trainer import forward, memorisation, model, optimizer, state
from trainer import strategy as strategies
from trainer.layers.dropout import Dropout
from trainer.layers.noise import row_keys
from trainer.schedule import Schedule


class LanguageModelTask(tf_keras.Model):
    """Trains a causal language model with Keras `fit`.

    One step takes `accumulation_steps` microbatches on each replica, one after the
    other; sums losses, gradients and token counts over all of them in float32; reduces
    the sums over the replicas once; divides by the global number of loss-bearing
    tokens; and applies one update. So the update is that of the global batch, however
    it is split and wherever padding lies.

    Args:
      gpt2: owns the weights.
      options: how the network is computed.
      dropout: rate.
      accumulation_steps: microbatches of a step on each replica.
      clip_norm: bound on the gradient's global norm; 0: none.
      seed: of the dropout.
      compile_local: compile each replica's own work by XLA. Collectives stay outside:
        XLA has none for MirroredStrategy. On a TPU everything is compiled anyway.
      all_reduce: adds up each tensor over all replicas; left out, the strategy does.
    """

    def __init__(
        self,
        gpt2: TFGPT2LMHeadModel,
        *,
        options: forward.Options = forward.DEFAULT_OPTIONS,
        dropout: float = 0.0,
        accumulation_steps: int = 1,
        clip_norm: float = 0.0,
        seed: int = 0,
        compile_local: bool = False,
        all_reduce: Callable[[Any], Any] = strategies.all_reduce_sum,
    ):
        super().__init__()
        # What a step returns is already the same everywhere. Keras would otherwise
        # add up the replicas' values, except on a TPU.
        self.distribute_reduction_method = "first"
        self.gpt2 = gpt2
        compiled = compile_local or options.compiled
        self.options = dataclasses.replace(options, compiled=compiled)
        self.dropout = dropout
        self.accumulation_steps = accumulation_steps
        self.clip_norm = clip_norm
        self.seed = seed
        self._all_reduce = all_reduce
        self.skipped_updates = _counter("skipped_updates")
        self.skipped_in_a_row = _counter("skipped_in_a_row")
        compiled_locally = functools.partial(
            tf.function, jit_compile=compile_local or None, autograph=False
        )
        self._local_gradients = compiled_locally(self.local_gradients)
        self._local_loss = compiled_locally(self.local_loss)

    # There is nothing to rewrite, and AutoGraph would take half the time of tracing.
    @tf.autograph.experimental.do_not_convert
    def train_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Makes one optimizer step.

        Args:
          batch: this replica's part of the global batch: `tokens` int32
            [accumulation_steps * microbatch_size, T]; `length` int32 [same]; and
            `row` int32 [same], the place of each record in the global batch.

        Returns:
          Scalars, the same on all replicas: float32 `loss` (nats a token),
          `learning_rate`, `gradient_norm` (before clipping), `update_norm` (of what is
          added to the weights); and int64 `skipped_updates` and `skipped_in_a_row`:
          where loss or norm is no finite number, weights and optimizer state stay as
          they are.
        """
        keys = row_keys(self.seed, self.optimizer.iterations, batch["row"])
        sums = self._local_gradients(batch["tokens"], batch["length"], keys)
        loss, count, gradients = self._all_reduce(sums)
        loss = tf.math.divide_no_nan(loss, count)
        gradients = [tf.math.divide_no_nan(g, count) for g in gradients]
        norm = tf.linalg.global_norm(gradients)
        if self.clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm, norm)
        finite = tf.math.is_finite(loss) & tf.math.is_finite(norm)
        skipped = tf.cast(~finite, tf.int64)
        self.skipped_updates.assign_add(skipped)
        self.skipped_in_a_row.assign((self.skipped_in_a_row + 1) * skipped)
        weights = self.gpt2.trainable_variables
        before = [tf.identity(variable) for variable in weights]
        with self.optimizer.only_if(finite):
            self.optimizer.apply_gradients(
                zip(gradients, weights, strict=True), skip_gradients_aggregation=True
            )
        updates = [new - old for new, old in zip(weights, before, strict=True)]
        return {
            "loss": loss,
            "learning_rate": tf.identity(self.optimizer.learning_rate),
            "gradient_norm": norm,
            "update_norm": tf.linalg.global_norm(updates),
            "skipped_updates": tf.identity(self.skipped_updates),
            "skipped_in_a_row": tf.identity(self.skipped_in_a_row),
        }

    @tf.autograph.experimental.do_not_convert
    def test_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns the global `loss_sum` (nats) and `token_count` of one batch.

        Args:
          batch: this replica's part of what `tfrecords.windows` reads.
        """
        sums = self._local_loss(batch["tokens"], batch["length"], batch["first"])
        loss, count = self._all_reduce(sums)
        return {"loss_sum": loss, "token_count": count}

    def local_gradients(
        self, tokens: tf.Tensor, length: tf.Tensor, keys: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """Sums loss, loss-bearing tokens and gradients over the microbatches.

        Args:
          tokens: int32 [accumulation_steps * microbatch_size, T].
          length: int32 [accumulation_steps * microbatch_size].
          keys: uint32 [accumulation_steps * microbatch_size], of the dropout.

        Returns:
          float32 [], float32 [], and float32 gradients of the summed loss.
        """
        variables = self.gpt2.trainable_variables

        def microbatch(tokens: tf.Tensor, length: tf.Tensor, keys: tf.Tensor) -> tuple:
            dropout = Dropout(self.dropout, keys, self.options.compiled)
            with tf.GradientTape() as tape:
                loss, count = forward.summed_loss(
                    self.gpt2, tokens, length, self.options, dropout
                )
            return loss, count, tape.gradient(loss, variables)

        num = self.accumulation_steps
        if num == 1:
            return microbatch(tokens, length, keys)
        parts = [
            tf.reshape(rows, [num, rows.shape[0] // num, *rows.shape[1:]])
            for rows in (tokens, length, keys)
        ]

        def body(index: tf.Tensor, *sums: tf.Tensor) -> tuple[tf.Tensor, ...]:
            loss, count, gradients = microbatch(*(rows[index] for rows in parts))
            # Uncompiled, TensorFlow's optimizer merges `sum + (a + b)`, where the tied
            # embedding has two gradients, and adds large tensors in a temporary
            # variable. What creates it waits for `sum` by a control edge only, which
            # also fires when the loop ends: this variable is not removed, and the next
            # execution fails, since its name is taken (tensorflow#23780). Additions
            # that wait for another tensor, too, are not merged; XLA ignores the edge.
            with tf.control_dependencies([loss]):
                gradients = [tf.identity(gradient) for gradient in gradients]
            more = (loss, count, *gradients)
            return (index + 1, *(a + b for a, b in zip(sums, more, strict=True)))

        zeros = [tf.zeros(variable.shape, tf.float32) for variable in variables]
        _, loss, count, *sums = tf.while_loop(
            lambda index, *_: index < num,
            body,
            (tf.constant(0), tf.constant(0.0), tf.constant(0.0), *zeros),
            parallel_iterations=1,
            maximum_iterations=num,  # XLA wants a bound
        )
        return loss, count, sums

    def local_loss(
        self, tokens: tf.Tensor, length: tf.Tensor, first: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the summed loss and number of loss-bearing tokens, no dropout."""
        losses, weights = forward.token_losses(
            self.gpt2, tokens, length, first, self.options
        )
        return tf.reduce_sum(losses * weights), tf.reduce_sum(weights)


def _counter(name: str) -> tf.Variable:
    return tf.Variable(
        0,
        dtype=tf.int64,
        trainable=False,
        name=name,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )


def build(
    config: Config,
    manifest: Manifest,
    strategy: tf.distribute.Strategy,
    num_steps: int,
) -> LanguageModelTask:
    """Builds model, optimizer and step of a run, compiled for Keras `fit`.

    Args:
      config: of the run.
      manifest: of its dataset.
      strategy: whose scope this is called in.
      num_steps: of the whole run.

    Raises:
      ConfigError: batch sizes do not divide, or model and data do not fit together.
    """
    settings = config.training
    accumulation_steps = strategies.accumulation_steps(
        settings, strategy.num_replicas_in_sync
    )
    gpt2 = model.create(config.model, manifest, settings.seed)
    task = assemble(
        gpt2,
        config,
        num_steps,
        accumulation_steps=accumulation_steps,
        options=forward.Options(
            precision=settings.precision,
            remat=settings.remat,
            compiled=strategies.compiles_everything(strategy),
        ),
        compile_local=strategies.compiles_local_work(strategy, settings.precision),
    )
    logging.info(
        "%s parameters, %s bytes of optimizer state",
        f"{gpt2.num_parameters():,}",
        f"{state.num_bytes(task.optimizer.variables):,}",
    )
    by_heart = memorisation.expected(
        manifest.split("train").tokens,
        gpt2.num_parameters(),
        pretrained=bool(config.model.initial_checkpoint),
    )
    if by_heart:
        logging.warning(by_heart)
    logging.info(
        "a step is %d sequences of %d tokens: %d replicas x %d accumulation steps x "
        "microbatch %d; remat %s",
        settings.global_batch_size,
        manifest.sequence_length,
        strategy.num_replicas_in_sync,
        accumulation_steps,
        settings.microbatch_size,
        settings.remat,
    )
    return task


def assemble(
    gpt2: TFGPT2LMHeadModel, config: Config, num_steps: int, **step: Any
) -> LanguageModelTask:
    """Joins a model, the step and the optimizer that `config` describes.

    Args:
      gpt2: owns the weights.
      config: of the run.
      num_steps: of the whole run.
      **step: what depends on the hardware, for `LanguageModelTask`.
    """
    settings = config.training
    task = LanguageModelTask(
        gpt2,
        dropout=settings.dropout,
        clip_norm=config.optimizer.clip_norm,
        seed=settings.seed,
        **step,
    )
    schedule = Schedule(config.optimizer, num_steps)
    task.compile(
        optimizer=optimizer.create(
            config.optimizer, schedule, gpt2.trainable_variables
        ),
        steps_per_execution=min(settings.steps_per_execution, num_steps),
    )
    return task
