"""Trains: `python -m trainer.train --config=… --data_dir=… --workdir=…`.

Reads a dataset that `data_pipeline` wrote. Writes to the workdir: checkpoints, the
tokenizer, metrics.jsonl, TensorBoard's files and loss_curve.png. The same command
continues a run that was stopped, and does nothing more to one that is finished.
"""

import contextlib
import dataclasses
import functools
import json

import tensorflow as tf
import tf_keras
from absl import flags, logging
from etils import epath

from configs import cli
from configs.schema import Config, TrainingConfig, flatten, validate
from tfrecords import lease, reader
from tfrecords import manifest as manifests
from trainer import callbacks, cloud, hardware, metrics, preemption, schedule, summary
from trainer import strategy as strategies
from trainer import task as tasks
from trainer.checkpoint import Checkpoints
from trainer.cluster import Cluster
from trainer.scoring import Scorer

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class _Run:
    """What does not change while it trains."""

    config: TrainingConfig
    data_dir: str
    manifest: manifests.Manifest
    strategy: tf.distribute.Strategy
    num_steps: int


def train(config: Config, data_dir: str, workdir: str, cluster: Cluster) -> None:
    """Runs or continues the training that `config` describes, to its end.

    Args:
      config: of the run.
      data_dir: folder of the dataset.
      workdir: folder of the run.
      cluster: the hardware.

    Raises:
      ConfigError, DatasetError, CheckpointError: what was given does not fit together.
      PreemptedError: it had to stop, and can be continued.
    """
    # -- data: verified before anything is built
    manifest = manifests.load(data_dir)
    manifests.verify_tokenizer(data_dir, manifest)
    for split in manifest.splits:
        manifests.verify_shards(data_dir, manifest, split)
    watch = manifests.Watch(data_dir, manifest)
    cluster.check_same("--data_dir", manifest.fingerprint)

    # -- hardware: the one expected, and what of the run depends on it
    strategy = cluster.strategy
    found = strategies.find(strategy)
    config = hardware.settle(config, manifest, found, workdir)
    cluster.check_same("--config", json.dumps(flatten(config)))

    # -- model, optimizer and step
    num_steps = schedule.total_steps(config.training, manifest)
    with strategy.scope():
        task = tasks.build(config, manifest, strategy, num_steps)

    # -- continue where the workdir stands
    checkpoints = Checkpoints(
        workdir, task=task, config=config, manifest=manifest, writes=cluster.is_chief
    )
    step = cluster.chief_first(checkpoints.restore)
    cluster.check_same("--workdir", f"step {step}")
    if cluster.num_machines > 1:
        cluster.check_same("model.initial_checkpoint", checkpoints.fingerprint())
    if step >= num_steps:
        logging.info("%s is finished: %d of %d steps", workdir, step, num_steps)
        return
    log = cluster.chief_first(
        lambda: metrics.MetricsLog(workdir, step, writes=cluster.is_chief)
    )
    patience = config.training.early_stopping_patience
    if patience and log.evaluations_since_best >= patience:
        logging.info("%s is finished: it stopped early, at step %d", workdir, step)
        return
    if cluster.is_chief:
        checkpoints.check_room()
        _copy_tokenizer(data_dir, workdir)

    # -- train
    run = _Run(config.training, data_dir, manifest, strategy, num_steps)
    with (
        reader.naming_damage(data_dir, manifest),
        contextlib.closing(checkpoints),
        preemption.watched(cluster) as notice,
    ):
        try:
            task.fit(
                _batches(run, step),
                steps_per_epoch=num_steps - step,
                callbacks=_callbacks(
                    run, log, checkpoints, watch, _scorer(run, task), notice
                ),
                verbose=0,
            )
        except preemption.PreemptedError:
            watch.check()
            log.flush()
            checkpoints.save(log.best_step)
            cluster.chief_first(checkpoints.close)
            raise
        cluster.chief_first(checkpoints.close)


def _batches(run: _Run, start_step: int) -> tf.distribute.DistributedDataset:
    size = run.config.global_batch_size

    def host_batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
        found = reader.training_batches(
            run.data_dir,
            run.manifest,
            global_batch_size=size,
            batch_size=size // context.num_replicas_in_sync,
            start_step=start_step,
            num_steps=run.num_steps,
            seed=run.config.seed,
            host_index=context.input_pipeline_id,
            num_hosts=context.num_input_pipelines,
        )
        return strategies.counted(found)

    return run.strategy.distribute_datasets_from_function(host_batches)


def _scorer(run: _Run, task: tasks.LanguageModelTask) -> Scorer | None:
    if "validation" not in run.manifest.splits:
        return None
    return Scorer(
        task,
        run.strategy,
        data_dir=run.data_dir,
        manifest=run.manifest,
        split="validation",
        batch_size=run.config.microbatch_size,
    )


def _callbacks(
    run: _Run,
    log: metrics.MetricsLog,
    checkpoints: Checkpoints,
    watch: manifests.Watch,
    scorer: Scorer | None,
    notice: preemption.Notice,
) -> list[tf_keras.callbacks.Callback]:
    """Returns them in the order in which they act after a step."""
    config, num_steps = run.config, run.num_steps
    batch_records = functools.partial(
        reader.batch_records,
        run.manifest,
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
        callbacks.Metrics(
            log,
            num_steps=num_steps,
            tokens_per_step=config.global_batch_size * run.manifest.sequence_length,
        ),
        callbacks.Guard(config.max_skipped_in_a_row, batch_records),
        *evaluation,
        callbacks.Saving(
            log,
            checkpoints,
            watch,
            interval=config.checkpoint_interval,
            num_steps=num_steps,
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
    for folder in (FLAGS.data_dir, FLAGS.workdir):
        cloud.warn_of_distance(folder)
    with preemption.naming_loss(), contextlib.ExitStack() as held:
        cluster = Cluster(strategies.from_flags())
        if cluster.is_chief:
            held.enter_context(lease.only_writer(FLAGS.workdir))
        train(config, FLAGS.data_dir, FLAGS.workdir, cluster)
    if cluster.is_chief:
        _print_result(FLAGS.data_dir, FLAGS.workdir)


def run() -> None:
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
