"""The training: verify, build, restore, train, save.

Reads a dataset that `data_pipeline` wrote. Writes to the workdir: checkpoints, the
dataset's tokenizer and manifest, run.json, metrics, samples and events (.jsonl) and
TensorBoard's files. Training continues where the workdir stands.
"""

import contextlib
import datetime
import functools
import json

import tf_keras
from absl import logging

from configs.progress import progress
from configs.schema import Config, flatten
from tfrecords import manifest as manifests
from tfrecords import reader, verify
from tfrecords.manifest import Manifest
from tfrecords.storage import files
from trainer.callbacks.at_intervals import AtIntervals
from trainer.callbacks.saving import Saving
from trainer.checkpoints.run_checkpoints import Checkpoints
from trainer.models import variables
from trainer.optimizers import schedule
from trainer.planning import hardware
from trainer.run_dir import (
    goodput,
    journal,
    json_files,
    layout,
    metrics,
    plans,
    trackers,
)
from trainer.run_dir.metrics import MetricsLog
from trainer.runtime import preemption
from trainer.runtime import strategy as strategies
from trainer.runtime.cluster import Cluster
from trainer.tasks import leaks
from trainer.tasks.create import create_training_step
from trainer.tasks.step import TrainingStep
from trainer.training import callbacks
from trainer.training.run import Run


def train(config: Config, data_dir: str, workdir: str, cluster: Cluster) -> None:
    """Starts or continues a training run, and trains to its end.

    Args:
      config: of the run.
      data_dir: folder of the dataset.
      workdir: folder of the run.
      cluster: the machines, with their strategy.

    Raises:
      UserError: config, hardware and workdir do not fit together.
      DataError: the dataset or a checkpoint is damaged, or does not fit.
      PreemptedError: the run had to stop; the same command continues it.
    """
    # -- data: verified before anything is built
    manifest = manifests.load(data_dir)
    verify.verify_files(data_dir, manifest)
    for split in manifest.splits:
        verify.verify_shards(data_dir, manifest, split)
    watch = verify.ShardChangeDetector(data_dir, manifest)
    cluster.check_same("--data_dir", manifest.fingerprint)

    # -- hardware, model, optimizer and step
    run = _resolve_run(config, data_dir, workdir, manifest, cluster)
    with run.strategy.scope():
        training_step = create_training_step(
            run.config,
            manifest,
            run.strategy,
            run.num_steps,
            files.join(data_dir, manifests.TOKENIZER_FOLDER),
        )

    # -- continue where the workdir stands
    checkpoints = Checkpoints(
        workdir,
        training_step=training_step,
        config=run.config,
        manifest=manifest,
        writes=cluster.is_chief,
    )
    step, log = _restore(checkpoints, workdir, cluster)
    if _is_finished(run, step, log):
        return
    leaks.check(
        training_step.architecture,
        training_step.task,
        training_step.model.config,
        manifest.sequence_length,
    )
    if cluster.is_chief:
        checkpoints.check_room()
        _describe(run, step, training_step)
        log.track(trackers.create(workdir, run.config))

    # -- train
    saving = Saving(
        log,
        checkpoints,
        watch,
        interval=run.config.training.checkpoint_interval,
        num_steps=run.num_steps,
    )
    with (
        reader.translate_data_loss_errors(data_dir, manifest),
        contextlib.closing(checkpoints),
        contextlib.closing(log),
    ):
        _train_to_end(run, step, log, training_step, saving, cluster)
    if cluster.is_chief:
        _log_goodput(run, saving.mean_seconds)


def _resolve_run(
    config: Config, data_dir: str, workdir: str, manifest: Manifest, cluster: Cluster
) -> Run:
    """Returns the run, with its config resolved for the cluster's hardware."""
    detected = strategies.detect_hardware(cluster.strategy)
    config = hardware.resolve_hardware_config(
        config, manifest, detected, functools.partial(plans.load, workdir)
    )
    cluster.check_same("--config", json.dumps(flatten(config)))
    num_steps = schedule.total_steps(config.training, manifest)
    schedule.check_intervals(config, num_steps)
    return Run(
        config,
        data_dir,
        workdir,
        manifest,
        cluster.strategy,
        detected,
        num_steps=num_steps,
    )


def _restore(
    checkpoints: Checkpoints, workdir: str, cluster: Cluster
) -> tuple[int, MetricsLog]:
    """Restores the newest checkpoint on all machines; returns its step and the log."""
    step = cluster.run_on_chief_first(checkpoints.restore)
    cluster.check_same("--workdir", f"step {step}")
    if cluster.num_machines > 1:
        cluster.check_same("model.initial_checkpoint", checkpoints.fingerprint())
    log = cluster.run_on_chief_first(
        lambda: MetricsLog(workdir, step, writes=cluster.is_chief)
    )
    return step, log


def _train_to_end(
    run: Run,
    step: int,
    log: MetricsLog,
    training_step: TrainingStep,
    saving: Saving,
    cluster: Cluster,
) -> None:
    """Trains from a step to the last; saves where the run has to stop before."""
    with (
        preemption.watched(cluster) as notice,
        progress("train", run.num_steps, "step", initial=step) as bar,
    ):
        display = callbacks.displaying if cluster.is_chief else lambda *_: []
        acting = [
            *callbacks.measuring(run, log, training_step, bar, notice.check),
            *display(run, log, training_step),
            saving,
            tf_keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda *_: notice.check()
            ),
        ]
        try:
            _fit(run, step, log, training_step, acting)
        except preemption.PreemptedError:
            saving.save()
            saving.wait()
            cluster.exit_barrier()
            raise
        saving.wait()
        cluster.exit_barrier()


def _fit(
    run: Run,
    step: int,
    log: MetricsLog,
    training_step: TrainingStep,
    acting: list[tf_keras.callbacks.Callback],
) -> None:
    """Trains from a step to the last, after what is still due at that step."""
    for callback in acting:
        if isinstance(callback, AtIntervals):
            callback.catch_up(training_step)
    if step < run.num_steps and not _is_finished(run, step, log):
        training_step.fit(
            run.batches(step),
            steps_per_epoch=run.num_steps - step,
            callbacks=acting,
            verbose=0,
        )


def _is_finished(run: Run, step: int, log: MetricsLog) -> bool:
    """Returns whether all is done, also by early stopping, and logs it."""
    patience = run.config.training.early_stopping_patience
    is_scored = "validation" not in run.manifest.splits or log.has_score(step)
    if step >= run.num_steps and is_scored:
        how = f"{step} of {run.num_steps} steps"
    elif patience and log.evaluations_since_best >= patience:
        how = f"it stopped early, at step {step}"
    else:
        return False
    logging.info("%s is finished: %s", run.workdir, how)
    return True


def _log_goodput(run: Run, save_seconds: float) -> None:
    """Logs the goodput as an event, and the checkpoint interval that would lose least.

    Args:
      run: that has ended.
      save_seconds: by which a save held it up.
    """
    events = json_files.read_lines(
        files.join(run.workdir, layout.EVENTS), required_field="message"
    )
    now = datetime.datetime.now(datetime.timezone.utc)
    measured = goodput.measure(metrics.load(run.workdir), events, now)
    if not measured:
        return
    interval = measured.best_checkpoint_interval(save_seconds)
    logging.info(
        "goodput %.1f %%: %.0f of %.0f s in steps that stay, in %d starts%s",
        100 * measured.share,
        measured.training_seconds,
        measured.total_seconds,
        measured.num_starts,
        f"; a checkpoint every {interval} steps would lose least" if interval else "",
        extra=journal.EVENT,
    )


def _describe(run: Run, step: int, training_step: TrainingStep) -> None:
    """Writes run.json, and logs the start as an event."""
    journal.write_run_record(
        run.workdir,
        run.data_dir,
        run.config,
        hardware=run.hardware.name,
        parameter_count=variables.num_parameters(training_step.model.variables),
        trained_parameter_count=variables.num_parameters(training_step.trained),
        num_steps=run.num_steps,
        tokens_per_step=run.tokens_per_step,
        model_config=training_step.model.config.to_dict(),
    )
    logging.info(
        "step %d: %s %s, up to step %d",
        step,
        journal.STARTS,
        run.hardware.name,
        run.num_steps,
        extra=journal.EVENT,
    )
