"""Trains: `python -m trainer.train --config=… --data_dir=… --workdir=…`.

Reads a dataset that `data_pipeline` wrote. Writes to the workdir: checkpoints, the
tokenizer, metrics.jsonl, TensorBoard's files and loss_curve.png. The same command
continues a run that was stopped, and does nothing more to one that is finished.
"""

import contextlib
import functools
import json

import tensorflow as tf
import tf_keras
from absl import flags, logging
from etils import epath

from configs import cli
from configs.schema import Config, TrainingConfig, validate
from tfrecords import manifest as manifests
from tfrecords import reader, storage
from trainer import callbacks, hardware, metrics, preemption, schedule, summary
from trainer import strategy as strategies
from trainer import task as tasks
from trainer.checkpoint import Checkpoints
from trainer.scoring import Scorer

FLAGS = flags.FLAGS


def train(
    config: Config, data_dir: str, workdir: str, strategy: tf.distribute.Strategy
) -> None:
    """Runs or continues the training that `config` describes, to its end.

    Raises:
      ConfigError, DatasetError, CheckpointError: what was given does not fit together.
    """
    # -- data: verified before anything is built
    manifest = manifests.load(data_dir)
    manifests.verify_tokenizer(data_dir, manifest)
    for split in manifest.splits:
        manifests.verify_shards(data_dir, manifest, split)

    # -- hardware: the one expected, and what of the run depends on it
    found = strategies.find(strategy)
    config = hardware.settle(config, manifest, found, workdir)

    # -- model, optimizer and step
    num_steps = schedule.total_steps(config.training, manifest)
    with strategy.scope():
        task = tasks.build(config, manifest, strategy, num_steps)

    # -- continue where the workdir stands
    checkpoints = Checkpoints(workdir, task=task, config=config, manifest=manifest)
    step = checkpoints.restore()
    if step >= num_steps:
        logging.info("%s is finished: %d of %d steps", workdir, step, num_steps)
        return
    _copy_tokenizer(data_dir, workdir)
    log = metrics.MetricsLog(workdir, step)
    patience = config.training.early_stopping_patience
    if patience and log.evaluations_since_best >= patience:
        logging.info("%s is finished: it stopped early, at step %d", workdir, step)
        return

    # -- train
    batches = _batches(config.training, data_dir, manifest, strategy, step, num_steps)
    scorer = _scorer(config.training, data_dir, manifest, strategy, task)
    with (
        reader.naming_damage(data_dir, manifest),
        contextlib.closing(checkpoints),
        preemption.watched() as notice,
    ):
        try:
            task.fit(
                batches,
                steps_per_epoch=num_steps - step,
                callbacks=_callbacks(
                    config.training,
                    log,
                    checkpoints,
                    scorer,
                    notice,
                    manifest,
                    num_steps=num_steps,
                ),
                verbose=0,
            )
        except preemption.PreemptedError:
            log.flush()
            checkpoints.save(log.best_step)
            raise


def _batches(
    config: TrainingConfig,
    data_dir: str,
    manifest: manifests.Manifest,
    strategy: tf.distribute.Strategy,
    start_step: int,
    num_steps: int,
) -> tf.distribute.DistributedDataset:
    def host_batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return reader.training_batches(
            data_dir,
            manifest,
            global_batch_size=config.global_batch_size,
            batch_size=config.global_batch_size // context.num_replicas_in_sync,
            start_step=start_step,
            num_steps=num_steps,
            seed=config.seed,
            host_index=context.input_pipeline_id,
            num_hosts=context.num_input_pipelines,
        )

    return strategy.distribute_datasets_from_function(host_batches)


def _scorer(
    config: TrainingConfig,
    data_dir: str,
    manifest: manifests.Manifest,
    strategy: tf.distribute.Strategy,
    task: tasks.LanguageModelTask,
) -> Scorer | None:
    if "validation" not in manifest.splits:
        return None
    return Scorer(
        task,
        strategy,
        data_dir=data_dir,
        manifest=manifest,
        split="validation",
        batch_size=config.microbatch_size,
    )


def _callbacks(
    config: TrainingConfig,
    log: metrics.MetricsLog,
    checkpoints: Checkpoints,
    scorer: Scorer | None,
    notice: preemption.Notice,
    manifest: manifests.Manifest,
    *,
    num_steps: int,
) -> list[tf_keras.callbacks.Callback]:
    """Returns them in the order in which they act after a step."""
    tokens_per_step = config.global_batch_size * manifest.sequence_length
    batch_records = functools.partial(
        reader.batch_records,
        manifest,
        global_batch_size=config.global_batch_size,
        seed=config.seed,
    )
    evaluation = []
    if scorer:
        evaluation.append(
            callbacks.Evaluation(
                log,
                scorer,
                notice,
                patience=config.early_stopping_patience,
                interval=config.evaluation_interval,
                num_steps=num_steps,
            )
        )
    return [
        callbacks.Metrics(log, num_steps=num_steps, tokens_per_step=tokens_per_step),
        callbacks.Guard(config.max_skipped_in_a_row, batch_records),
        *evaluation,
        callbacks.Saving(
            log, checkpoints, interval=config.checkpoint_interval, num_steps=num_steps
        ),
        callbacks.Stopping(notice),
    ]


def _copy_tokenizer(data_dir: str, workdir: str) -> None:
    source = epath.Path(data_dir) / manifests.TOKENIZER_FOLDER
    target = epath.Path(workdir) / manifests.TOKENIZER_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        path.copy(target / path.name, overwrite=True)


def _print_result(data_dir: str, workdir: str) -> None:
    lines = metrics.load(workdir)
    figures = {"mode": manifests.load(data_dir).mode, **summary.table(lines)}
    curve = summary.draw_curve(lines, workdir)
    if FLAGS.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        number = f"{value:,.3f}" if isinstance(value, float) else value
        number = f"{value:,}" if isinstance(value, int) else number
        print(f"{name.replace('_', ' '):30}{number:>14}")
    print(f"{'loss curve':30}{curve}")


def define_flags() -> None:
    cli.define_config()
    strategies.define_flags()
    flags.DEFINE_string("data_dir", "", "folder of the dataset")
    flags.DEFINE_string("workdir", "", "folder of the run")


def main() -> None:
    config = FLAGS.config
    validate(config)
    strategies.check_folder("data_dir", FLAGS.data_dir)
    strategies.check_folder("workdir", FLAGS.workdir)
    strategy = strategies.from_flags()
    with storage.only_writer(FLAGS.workdir):
        train(config, FLAGS.data_dir, FLAGS.workdir, strategy)
    _print_result(FLAGS.data_dir, FLAGS.workdir)


def run() -> None:
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
