"""The Keras model that owns the step: accumulate, reduce once, divide, apply.

Dimensions: B records, T tokens.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from trainer.models.architecture import DEFAULT_OPTIONS, Architecture, Options
from trainer.models.layers.dropout import Dropout
from trainer.models.layers.noise import row_keys
from trainer.runtime import strategy as strategies
from trainer.tasks.task import Batch, Task

# The scalars of a step that the host reads, in one tensor. The others are float32.
_RESULTS = (
    *("loss", "learning_rate", "gradient_norm", "update_norm"),
    *("skipped_updates", "skipped_in_a_row", "step"),
)
_INTEGERS = ("skipped_updates", "skipped_in_a_row", "step")


class TrainingStep(tf_keras.Model):
    """Trains a model on a task with Keras `fit`.

    One step takes `accumulation_steps` microbatches on each replica, one after the
    other; sums losses, gradients and weights over all of them in float32; reduces the
    sums over the replicas once; divides by the global weight (of a language model: the
    number of loss-bearing tokens); and applies one update. So the update is that of the
    global batch, however it is split and wherever padding lies.

    Args:
      model: owns the weights.
      architecture: of the model.
      task: gives the loss.
      options: how the network is computed.
      dropout: rate.
      accumulation_steps: microbatches of a step on each replica.
      clip_norm: bound on the gradient's global norm; 0: none.
      seed: of the dropout.
      trained: the variables that are updated; None: all. Nothing is computed or kept
        for the others.
      compile_local: compile each replica's own work by XLA. Collectives stay outside:
        XLA has none for MirroredStrategy. On a TPU everything is compiled anyway.
      compile_update: compile what follows the reduction as well.
      all_reduce: adds up each tensor over all replicas; left out, the strategy does.
    """

    train_function: Any  # of Keras, which leaves it None until it is made

    def __init__(
        self,
        model: tf_keras.Model,
        architecture: Architecture,
        task: Task,
        *,
        options: Options = DEFAULT_OPTIONS,
        dropout: float = 0.0,
        accumulation_steps: int = 1,
        clip_norm: float = 0.0,
        seed: int = 0,
        trained: Sequence[tf.Variable] | None = None,
        compile_local: bool = False,
        compile_update: bool = False,
        all_reduce: Callable[[Any], Any] = strategies.all_reduce_sum,
    ):
        super().__init__()
        # What a step returns is already the same everywhere. Keras would otherwise
        # add up the replicas' values, except on a TPU.
        self.distribute_reduction_method = "first"
        self.model = model
        self.trained = model.trainable_variables if trained is None else trained
        self.architecture = architecture
        self.task = task
        compiled = compile_local or options.compiled
        self.options = dataclasses.replace(options, compiled=compiled)
        self.dropout = dropout
        self.accumulation_steps = accumulation_steps
        self.clip_norm = clip_norm
        self.seed = seed
        self._all_reduce = all_reduce
        self.skipped_updates = _counter("skipped_updates")
        self.skipped_in_a_row = _counter("skipped_in_a_row")
        compile_local_work = functools.partial(
            tf.function, jit_compile=compile_local or None, autograph=False
        )
        self._local_gradients = compile_local_work(self.local_gradients)
        self._local_sums = compile_local_work(self.local_sums)
        self._update = (
            compile_local_work(self.update) if compile_update else self.update
        )

    def make_train_function(self, force: bool = False) -> Callable[[Any], Any]:
        """Returns the function that makes `steps_per_execution` steps, as Keras does.

        The loop starts from zeros in place of results. Keras's loop does not, so that
        AutoGraph traces the step twice, the first time for what it returns.

        The function returns the results of the last step, as NumPy scalars: those of
        `train_step`, and `step`, the updates made so far. It reads them from the device
        at once; Keras and each callback would read one after the other.
        """
        if self.train_function is not None and not force:
            return self.train_function
        strategy = self.distribute_strategy

        @functools.partial(tf.function, reduce_retracing=True, autograph=False)
        def train_function(iterator: Any, num_steps: tf.Tensor) -> tf.Tensor:
            def body(step: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                results = strategy.run(self.packed_step, args=(next(iterator),))
                return step + 1, strategy.experimental_local_results(results)[0]

            _, results = tf.while_loop(
                lambda step, _: step < num_steps,
                body,
                (tf.constant(0, tf.int64), tf.zeros([len(_RESULTS)], tf.int32)),
                maximum_iterations=tf.cast(num_steps, tf.int32),
            )
            return results

        def execute(iterator: Any) -> dict[str, np.generic]:
            num_steps = tf.constant(self._steps_per_execution.numpy())
            return _unpack(train_function(iterator, num_steps).numpy())

        self.train_function, self.train_tf_function = execute, train_function
        return execute

    def _configure_steps_per_execution(self, steps_per_execution: int) -> None:
        self._steps_per_execution = _HostCounter(steps_per_execution)

    @tf.autograph.experimental.do_not_convert
    def packed_step(self, batch: Batch) -> tf.Tensor:
        """Makes one step as a device executes it; returns its results in one tensor."""
        results = self.train_step(batch)
        with tf.control_dependencies(list(results.values())):
            self._train_counter.assign_add(1)
        return _pack(results | {"step": self.optimizer.iterations})

    # There is nothing to rewrite, and AutoGraph would take half the time of tracing.
    @tf.autograph.experimental.do_not_convert
    def train_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Makes one optimizer step.

        Args:
          batch: this replica's part of the global batch, B = accumulation_steps *
            microbatch_size: `tokens` int32 [B, T]; the task's features, int32 [B]; and
            `row` int32 [B], the place of each record in the global batch.

        Returns:
          Scalars, the same on all replicas: float32 `loss` (divided by the global
          weight), `learning_rate`, `gradient_norm` (before clipping), `update_norm` (of
          what is added to the weights); and int64 `skipped_updates` and
          `skipped_in_a_row`. Where loss or norm is not finite, weights and optimizer
          state stay as they are.
        """
        keys = row_keys(self.seed, self.optimizer.iterations, batch["row"])
        features = {name: batch[name] for name in ("tokens", *self.task.features)}
        sums = self._local_gradients(features, keys)
        results = self._update(*self._all_reduce(sums))
        skipped = tf.cast(~results.pop("finite"), tf.int64)
        self.skipped_updates.assign_add(skipped)
        self.skipped_in_a_row.assign((self.skipped_in_a_row + 1) * skipped)
        return {
            **results,
            "skipped_updates": tf.identity(self.skipped_updates),
            "skipped_in_a_row": tf.identity(self.skipped_in_a_row),
        }

    def update(
        self, loss: tf.Tensor, weight: tf.Tensor, gradients: list[tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Divides the sums over all replicas by the weight, and applies the update.

        Args:
          loss: float32 [], the sum.
          weight: float32 [].
          gradients: float32, of the sum.

        Returns:
          Results of `train_step`, and bool `finite`: whether the update applies.
        """
        loss = tf.math.divide_no_nan(loss, weight)
        gradients = [tf.math.divide_no_nan(g, weight) for g in gradients]
        norm = tf.linalg.global_norm(gradients)
        if self.clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm, norm)
        finite = tf.math.is_finite(loss) & tf.math.is_finite(norm)
        variables = self.trained
        before = [tf.identity(variable) for variable in variables]
        with self.optimizer.apply_if(finite):
            self.optimizer.apply_gradients(
                zip(gradients, variables, strict=True), skip_gradients_aggregation=True
            )
        updates = [new - old for new, old in zip(variables, before, strict=True)]
        return {
            "loss": loss,
            "learning_rate": tf.identity(self.optimizer.learning_rate),
            "gradient_norm": norm,
            "update_norm": tf.linalg.global_norm(updates),
            "finite": finite,
        }

    @tf.autograph.experimental.do_not_convert
    def test_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Returns the task's sums over all replicas' parts of one batch.

        Args:
          batch: this replica's part of what `tfrecords.windows` reads.
        """
        return self._all_reduce(self._local_sums(dict(batch)))

    def local_sums(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Returns the task's sums over a batch, without dropout."""
        return self.task.evaluation_sums(
            self.architecture, self.model, batch, self.options
        )

    def local_gradients(
        self, batch: Batch, keys: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """Sums loss, weight and gradients over the microbatches.

        Args:
          batch: features, int32 [B, …], B = accumulation_steps * microbatch_size.
          keys: uint32 [B], of the dropout.

        Returns:
          float32 [], float32 [], and float32 gradients of the summed loss.
        """
        variables = self.trained

        def microbatch(batch: Batch, keys: tf.Tensor) -> tuple:
            dropout = Dropout(
                self.dropout, keys, self.options.compiled, self.options.on_cpu
            )
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(variables)
                loss, weight = self.task.summed_loss(
                    self.architecture, self.model, batch, self.options, dropout
                )
            return loss, weight, tape.gradient(loss, variables)

        num = self.accumulation_steps
        if num == 1:
            return microbatch(batch, keys)
        microbatches = tf.nest.map_structure(
            lambda rows: tf.reshape(rows, [num, rows.shape[0] // num, *rows.shape[1:]]),
            (dict(batch), keys),
        )

        def body(index: tf.Tensor, *sums: tf.Tensor) -> tuple[tf.Tensor, ...]:
            loss, weight, gradients = microbatch(
                *tf.nest.map_structure(lambda rows: rows[index], microbatches)
            )
            # Uncompiled, TensorFlow's optimizer merges `sum + (a + b)`, where the tied
            # embedding has two gradients, and adds large tensors in a temporary
            # variable. What creates it waits for `sum` by a control edge only, which
            # also fires when the loop ends: this variable is not removed, and the next
            # execution fails, since its name is taken (tensorflow#23780). Additions
            # that wait for another tensor, too, are not merged; XLA ignores the edge.
            with tf.control_dependencies([loss]):
                gradients = [tf.identity(gradient) for gradient in gradients]
            values = (loss, weight, *gradients)
            return (index + 1, *(a + b for a, b in zip(sums, values, strict=True)))

        zeros = [tf.zeros(variable.shape, tf.float32) for variable in variables]
        _, loss, weight, *sums = tf.while_loop(
            lambda index, *_: index < num,
            body,
            (tf.constant(0), tf.constant(0.0), tf.constant(0.0), *zeros),
            parallel_iterations=1,
            maximum_iterations=num,  # XLA wants a bound
        )
        return loss, weight, sums


def _pack(results: dict[str, tf.Tensor]) -> tf.Tensor:
    """Returns the results as int32 [len(_RESULTS)], the bits of float32 as they are."""
    return tf.stack(
        [
            tf.cast(results[name], tf.int32)
            if name in _INTEGERS
            else tf.bitcast(results[name], tf.int32)
            for name in _RESULTS
        ]
    )


def _unpack(packed: np.ndarray) -> dict[str, np.generic]:
    return {
        name: value if name in _INTEGERS else value.view(np.float32)
        for name, value in zip(_RESULTS, packed, strict=True)
    }


class _HostCounter:
    """An integer that Keras reads and sets like a variable.

    A variable of a strategy is in the device's memory: the host would read it for each
    execution, and the loop of an execution for each step.
    """

    def __init__(self, value: int):
        self.assign(value)

    def assign(self, value: int) -> None:
        self._value = np.int64(value)

    def numpy(self) -> np.int64:
        return self._value

    def __le__(self, other: int) -> bool:
        return bool(self._value <= other)


def _counter(name: str) -> tf.Variable:
    return tf.Variable(
        0,
        dtype=tf.int64,
        trainable=False,
        name=name,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )
