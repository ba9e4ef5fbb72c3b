"""Trains: `python -m trainer.train --config=… --data_dir=… --workdir=…`.

Reads a dataset that `data_pipeline` wrote. Writes to the workdir: checkpoints, the
tokenizer, metrics.jsonl, TensorBoard's files and loss_curve.png. The same command
continues a run that was stopped, and does nothing more to one that is finished.
"""

import json
import math

import tensorflow as tf
from absl import flags, logging
from etils import epath

from configs import cli
from configs.schema import Config, validate
from tfrecords import manifest as manifests
from tfrecords import reader
from trainer import callbacks, metrics, model, optimizer, summary
from trainer import strategy as strategies
from trainer.checkpoint import Checkpoints
from trainer.schedule import Schedule
from trainer.scoring import Scorer
from trainer.task import LanguageModelTask

_CONFIG = cli.define_config()
_DATA_DIR = flags.DEFINE_string("data_dir", "", "folder of the dataset")
_WORKDIR = flags.DEFINE_string("workdir", "", "folder of the run")
_JSON = flags.DEFINE_bool("json", False, "print the result as one JSON object")


def train(
    config: Config, data_dir: str, workdir: str, strategy: tf.distribute.Strategy
) -> None:
    """Runs or continues the training that `config` describes, to its end.

    Raises:
      ConfigError, DatasetError, CheckpointError: what was given does not fit together.
    """
    # -- data: verified before anything is built
    manifest = manifests.load(data_dir)
    splits = [name for name in ("train", "validation") if name in manifest.splits]
    for split in splits:
        manifests.verify_shards(data_dir, manifest, split)

    # -- batches and steps
    settings = config.training
    accumulation_steps = strategies.accumulation_steps(settings, strategy)
    num_records = manifest.split("train").num_records
    num_steps = settings.num_steps or math.ceil(
        settings.num_epochs * num_records / settings.global_batch_size
    )

    # -- model, optimizer, task
    with strategy.scope():
        gpt2 = model.create(config.model, manifest, settings.seed)
        task = LanguageModelTask(
            gpt2,
            precision=settings.precision,
            dropout=settings.dropout,
            accumulation_steps=accumulation_steps,
            clip_norm=config.optimizer.clip_norm,
            seed=settings.seed,
            compile_local=strategies.compiles_local_work(strategy, settings.precision),
        )
        schedule = Schedule(config.optimizer, num_steps)
        rule = optimizer.create(config.optimizer, schedule, gpt2.trainable_variables)
        task.compile(
            optimizer=rule,
            steps_per_execution=min(settings.steps_per_execution, num_steps),
        )
    logging.info(
        "%s parameters, %s bytes of optimizer state; a step is %d sequences of %d = "
        "%d replicas x %d accumulation steps x microbatch %d",
        f"{gpt2.num_parameters():,}",
        f"{optimizer.state_bytes(rule):,}",
        settings.global_batch_size,
        manifest.sequence_length,
        strategy.num_replicas_in_sync,
        accumulation_steps,
        settings.microbatch_size,
    )

    # -- continue where the workdir stands
    checkpoints = Checkpoints(
        workdir, gpt2=gpt2, optimizer=rule, config=config, manifest=manifest
    )
    step = checkpoints.restore()
    if step >= num_steps:
        logging.info("%s is finished: %d of %d steps", workdir, step, num_steps)
        return
    _copy_tokenizer(data_dir, workdir)
    log = metrics.MetricsLog(workdir, step)

    # -- train
    def batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return reader.training_batches(
            data_dir,
            manifest,
            global_batch_size=settings.global_batch_size,
            batch_size=settings.global_batch_size // strategy.num_replicas_in_sync,
            start_step=step,
            num_steps=num_steps,
            seed=settings.seed,
            host_index=context.input_pipeline_id,
            num_hosts=context.num_input_pipelines,
        )

    hooks = [
        callbacks.Metrics(
            log,
            num_steps=num_steps,
            tokens_per_step=settings.global_batch_size * manifest.sequence_length,
        ),
        callbacks.Saving(
            checkpoints, interval=settings.checkpoint_interval, num_steps=num_steps
        ),
    ]
    if "validation" in splits:
        scorer = Scorer(
            task,
            strategy,
            data_dir=data_dir,
            manifest=manifest,
            split="validation",
            batch_size=settings.microbatch_size,
        )
        evaluation = callbacks.Evaluation(
            log, scorer, interval=settings.evaluation_interval, num_steps=num_steps
        )
        hooks.insert(1, evaluation)
    task.fit(
        strategy.distribute_datasets_from_function(batches),
        steps_per_epoch=num_steps - step,
        callbacks=hooks,
        verbose=0,
    )


def _copy_tokenizer(data_dir: str, workdir: str) -> None:
    source = epath.Path(data_dir) / manifests.TOKENIZER_FOLDER
    target = epath.Path(workdir) / manifests.TOKENIZER_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        path.copy(target / path.name, overwrite=True)


def _print_result(workdir: str) -> None:
    lines = metrics.load(workdir)
    figures = summary.table(lines)
    curve = summary.draw_curve(lines, workdir)
    if _JSON.value:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        number = f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"
        print(f"{name.replace('_', ' '):30}{number:>14}")
    print(f"{'loss curve':30}{curve}")


def main() -> None:
    config = _CONFIG.value
    validate(config)
    strategies.check_folder("data_dir", _DATA_DIR.value)
    strategies.check_folder("workdir", _WORKDIR.value)
    strategy = strategies.from_flags()
    train(config, _DATA_DIR.value, _WORKDIR.value, strategy)
    _print_result(_WORKDIR.value)


def run() -> None:
    cli.run(main)


if __name__ == "__main__":
    run()
