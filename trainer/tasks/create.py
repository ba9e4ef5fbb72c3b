"""Builds the training step of a run: model, task, optimizer and schedule."""

from typing import Any

import tensorflow as tf
import tf_keras
from absl import logging

from configs.errors import DataError
from configs.schema import Config, TrainingConfig
from tfrecords.manifest import Manifest
from trainer.models import lora, variables
from trainer.models import registry as architectures
from trainer.models.architecture import Architecture, Options
from trainer.models.create import create_model
from trainer.optimizers import factory
from trainer.optimizers.schedule import Schedule
from trainer.runtime import strategy as strategies
from trainer.tasks import host_memory, memorization
from trainer.tasks import registry as tasks
from trainer.tasks.step import TrainingStep
from trainer.tasks.task import Task


def create_training_step(
    config: Config,
    manifest: Manifest,
    strategy: tf.distribute.Strategy,
    num_steps: int,
    tokenizer: str = "",
) -> TrainingStep:
    """Builds model, optimizer and step of a run, compiled for Keras `fit`.

    Args:
      config: of the run.
      manifest: of its dataset.
      strategy: whose scope this is called in.
      num_steps: of the whole run.
      tokenizer: the dataset's folder of it.

    Raises:
      UserError: batch sizes do not divide, or model and data do not fit together.
      DataError: the dataset does not fit the task.
    """
    settings = config.training
    accumulation_steps = strategies.accumulation_steps(
        settings, strategy.num_replicas_in_sync
    )
    architecture = architectures.get(config.model.architecture)
    task = tasks.get(settings.task).resolve(settings, manifest)
    model = create_model(
        config.model, manifest, settings.seed, tokenizer, task.labels(manifest)
    )
    if strategies.detect_hardware(strategy).kind == "CPU":
        num_replicas = strategy.num_replicas_in_sync // strategies.machines(strategy)[0]
        num_bytes = host_memory.estimate(
            model,
            trained_variables(model, settings),
            architecture,
            config,
            manifest.sequence_length,
            num_replicas,
        )
        host_memory.report(num_bytes)
    step = assemble(
        model,
        architecture,
        task,
        config,
        num_steps,
        accumulation_steps=accumulation_steps,
        **computation(
            architecture,
            strategy,
            settings.precision,
            remat=settings.remat,
            end_token=end_token(config, manifest),
        ),
        compile_update=strategies.compiles_update(strategy),
    )
    _log_sizes(step, config, manifest, strategy)
    return step


def computation(
    architecture: Architecture,
    strategy: tf.distribute.Strategy,
    precision: str,
    **options: Any,
) -> dict[str, Any]:
    """Returns a step's `options` and `compile_local`: what its devices are fast at.

    Args:
      architecture: of the model.
      strategy: that the step runs under.
      precision: of the matrix products.
      **options: others of `Options`.
    """
    on_cpu = architecture.computes_on_cpu and strategies.is_cpu(strategy)
    compiled = strategies.compiles_everything(strategy)
    return {
        "options": Options(precision, compiled=compiled, on_cpu=on_cpu, **options),
        "compile_local": not on_cpu
        and strategies.compiles_local_work(strategy, precision),
    }


def end_token(config: Config, manifest: Manifest) -> int | None:
    """Returns the token that attention does not go beyond; None: a record is one text.

    Raises:
      DataError: the dataset's records do not hold documents that such a token ends.
    """
    if config.data.attention != "document":
        return None
    if manifest.mode != "packed" or manifest.config.get("end_token") == "":
        raise DataError(
            "`data.attention=document` needs packed records, and a token after each "
            f"document. Received: mode {manifest.mode}, end token "
            f"{manifest.config.get('end_token')!r}. Preprocess with "
            "`--config.data.mode=packed` and the tokenizer's end token, or set "
            "`data.attention=causal`."
        )
    return manifest.end_of_text_id


def trained_variables(
    model: tf_keras.Model, settings: TrainingConfig
) -> list[tf.Variable]:
    """Returns the variables that are trained: all, those selected, or LoRA's.

    Raises:
      UserError: the patterns of `training.trainable` match nothing, or leave nothing.
    """
    if beside_frozen := lora.trained(model):
        return beside_frozen
    named = [(variables.name_of(v), v) for v in model.trainable_variables]
    names = variables.select(
        "training.trainable", settings.trainable, [name for name, _ in named]
    )
    return [variable for name, variable in named if name in names]


def _log_sizes(
    step: TrainingStep,
    config: Config,
    manifest: Manifest,
    strategy: tf.distribute.Strategy,
) -> None:
    """Logs the sizes of model and step, and warns of too little text."""
    settings = config.training
    trained_count = variables.num_parameters(step.trained)
    logging.info(
        "%s parameters, of which %s are trained, %s bytes of optimizer state",
        f"{variables.num_parameters(step.model.variables):,}",
        f"{trained_count:,}",
        f"{variables.num_bytes(step.optimizer.variables):,}",
    )
    if trained_count < variables.num_parameters(step.model.variables):
        names = map(variables.name_of, step.trained)
        logging.info("trained are %s", variables.listed(names))
    warning = memorization.expected(
        manifest.split("train").tokens,
        trained_count,
        pretrained=bool(config.model.initial_checkpoint),
    )
    if warning:
        logging.warning(warning)
    logging.info(
        "a step is %d sequences of %d tokens: %d replicas x %d accumulation steps x "
        "microbatch %d; remat %s",
        settings.global_batch_size,
        manifest.sequence_length,
        strategy.num_replicas_in_sync,
        step.accumulation_steps,
        settings.microbatch_size,
        settings.remat,
    )


def flops(training_step: TrainingStep, sequence_length: int, num_sequences: int) -> int:
    """Returns the FLOPs of the matrix products of a step.

    A product's gradient is two more: of its weights, and of its input. With LoRA in
    every layer the weights have none; what the adapters compute is not counted. Where
    another part is trained, the forward pass alone is certain.

    Args:
      training_step: owns the model, and knows what is trained.
      sequence_length: T, tokens of a record.
      num_sequences: records of the step.
    """
    model = training_step.model
    whole = training_step.architecture.step_flops(
        model.config, sequence_length, num_sequences
    )
    if len(training_step.trained) == len(model.trainable_variables):
        return whole
    return whole * (2 if lora.is_in_every_layer(model) else 1) // 3


def assemble(
    model: tf_keras.Model,
    architecture: Architecture,
    task: Task,
    config: Config,
    num_steps: int,
    **hardware_settings: Any,
) -> TrainingStep:
    """Joins a model, its task and the optimizer that `config` describes.

    Args:
      model: owns the weights.
      architecture: of the model.
      task: gives the loss.
      config: of the run.
      num_steps: of the whole run.
      **hardware_settings: arguments of `TrainingStep` that depend on the hardware.

    Raises:
      UserError: the patterns of `training.trainable` match nothing, or leave nothing.
    """
    settings = config.training
    trained = trained_variables(model, settings)
    step = TrainingStep(
        model,
        architecture,
        task,
        dropout=settings.dropout,
        clip_norm=config.optimizer.clip_norm,
        seed=settings.seed,
        trained=trained,
        **hardware_settings,
    )
    schedule = Schedule(config.optimizer, num_steps)
    step.compile(
        optimizer=factory.create(config.optimizer, schedule, trained),
        steps_per_execution=min(settings.steps_per_execution, num_steps),
    )
    return step
