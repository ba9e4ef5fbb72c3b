"""Trains: `python -m trainer.train --config=… --data_dir=… --workdir=…`.

Reads a dataset that `data_pipeline` wrote. Writes to the workdir: checkpoints, the
dataset's tokenizer and manifest, run.json, metrics, samples and events (.jsonl),
TensorBoard's files and loss_curve.png. The same command continues a run that was
stopped, and does nothing more to one that is finished.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator

import tensorflow as tf
import tf_keras
from absl import flags, logging
from tqdm import tqdm

from configs import cli
from configs.schema import Config, flatten
from configs.validation import validate
from tfrecords import manifest as manifests
from tfrecords import reader, verify
from tfrecords.storage import files, lease
from tfrecords.windows import Windows
from trainer.callbacks.at_intervals import AtIntervals
from trainer.callbacks.evaluation import Evaluation
from trainer.callbacks.guard import DivergenceGuard
from trainer.callbacks.histograms import Histograms
from trainer.callbacks.metrics import Metrics
from trainer.callbacks.samples import Samples
from trainer.callbacks.saving import Saving
from trainer.checkpoints.run_checkpoints import Checkpoints
from trainer.evaluation.scoring import Scorer
from trainer.generation.decoding import Settings
from trainer.generation.sampling import Sampler
from trainer.models import registry as architectures
from trainer.models import variables
from trainer.models.architecture import Architecture
from trainer.optimizers import schedule
from trainer.planning import hardware
from trainer.run_dir import journal, metrics, summary, trackers
from trainer.runtime import cloud_metadata, preemption
from trainer.runtime import strategy as strategies
from trainer.runtime.cluster import Cluster
from trainer.tasks import registry as tasks
from trainer.tasks.create import create_training_step
from trainer.tasks.step import TrainingStep

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class _Run:
    """What does not change while it trains."""

    config: Config
    data_dir: str
    workdir: str
    manifest: manifests.Manifest
    strategy: tf.distribute.Strategy
    found: strategies.Found
    num_steps: int

    @property
    def tokens_per_step(self) -> int:
        return self.config.training.global_batch_size * self.manifest.sequence_length


def train(config: Config, data_dir: str, workdir: str, cluster: Cluster) -> None:
    """Runs or continues the training that `config` describes, to its end.

    Args:
      config: of the run.
      data_dir: folder of the dataset.
      workdir: folder of the run.
      cluster: the hardware.

    Raises:
      UserError, DataError, DataError: what was given does not fit together.
      PreemptedError: it had to stop, and can be continued.
    """
    # -- data: verified before anything is built
    manifest = manifests.load(data_dir)
    verify.verify_tokenizer(data_dir, manifest)
    for split in manifest.splits:
        verify.verify_shards(data_dir, manifest, split)
    watch = verify.ShardChangeDetector(data_dir, manifest)
    cluster.check_same("--data_dir", manifest.fingerprint)

    # -- hardware: the one expected, and what of the run depends on it
    strategy = cluster.strategy
    found = strategies.find(strategy)
    config = hardware.settle(config, manifest, found, workdir)
    cluster.check_same("--config", json.dumps(flatten(config)))

    # -- model, optimizer and step
    num_steps = schedule.total_steps(config.training, manifest)
    run = _Run(config, data_dir, workdir, manifest, strategy, found, num_steps)
    with strategy.scope():
        training_step = create_training_step(config, manifest, strategy, num_steps)

    # -- continue where the workdir stands
    checkpoints = Checkpoints(
        workdir,
        training_step=training_step,
        config=config,
        manifest=manifest,
        writes=cluster.is_chief,
    )
    step = cluster.chief_first(checkpoints.restore)
    cluster.check_same("--workdir", f"step {step}")
    if cluster.num_machines > 1:
        cluster.check_same("model.initial_checkpoint", checkpoints.fingerprint())
    log = cluster.chief_first(
        lambda: metrics.MetricsLog(workdir, step, writes=cluster.is_chief)
    )
    if _is_finished(run, step, log):
        return
    if cluster.is_chief:
        checkpoints.check_room()
        _describe(run, step, training_step)
        log.track(trackers.create(workdir, config))

    # -- train
    with (
        reader.translate_data_loss_errors(data_dir, manifest),
        contextlib.closing(checkpoints),
        contextlib.closing(log),
        preemption.watched(cluster) as notice,
        tqdm(desc="train", total=num_steps, initial=step, unit="step") as bar,
    ):
        acting = [
            *_watching(run, log, training_step, notice, bar),
            *(_showing(run, log, training_step) if cluster.is_chief else []),
            Saving(
                log,
                checkpoints,
                watch,
                interval=config.training.checkpoint_interval,
                num_steps=num_steps,
            ),
            tf_keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda *_: notice.check()
            ),
        ]
        try:
            for callback in acting:
                if isinstance(callback, AtIntervals):
                    callback.catch_up(training_step)
            if step < num_steps and not _is_finished(run, step, log):
                training_step.fit(
                    _batches(run, step),
                    steps_per_epoch=num_steps - step,
                    callbacks=acting,
                    verbose=0,
                )
        except preemption.PreemptedError:
            watch.check()
            log.flush()
            checkpoints.save(log.best_step)
            checkpoints.close()
            cluster.leave_together()
            raise
        checkpoints.close()
        cluster.leave_together()


def _is_finished(run: _Run, step: int, log: metrics.MetricsLog) -> bool:
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


def _describe(run: _Run, step: int, training_step: TrainingStep) -> None:
    journal.write_run_record(
        run.workdir,
        run.data_dir,
        run.config,
        hardware=run.found.name,
        parameter_count=variables.num_parameters(training_step.model.variables),
        num_steps=run.num_steps,
        tokens_per_step=run.tokens_per_step,
        model_config=training_step.model.config.to_dict(),
    )
    logging.info(
        "step %d: training on %s, up to step %d",
        step,
        run.found.name,
        run.num_steps,
        extra=journal.EVENT,
    )


def _batches(run: _Run, start_step: int) -> tf.distribute.DistributedDataset:
    settings = run.config.training
    size = settings.global_batch_size

    def host_batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
        found = reader.training_batches(
            run.data_dir,
            run.manifest,
            global_batch_size=size,
            batch_size=size // context.num_replicas_in_sync,
            start_step=start_step,
            num_steps=run.num_steps,
            seed=settings.seed,
            host_index=context.input_pipeline_id,
            num_hosts=context.num_input_pipelines,
        )
        return strategies.counted(found)

    return run.strategy.distribute_datasets_from_function(host_batches)


def _scorer(run: _Run, training_step: TrainingStep) -> Scorer | None:
    if "validation" not in run.manifest.splits:
        return None
    length = run.manifest.sequence_length
    windows = Windows(
        run.data_dir,
        run.manifest,
        split="validation",
        context_length=length,
        stride=length,
    )
    return Scorer(
        training_step,
        run.strategy,
        windows,
        batch_size=run.config.training.microbatch_size,
    )


def _watching(
    run: _Run,
    log: metrics.MetricsLog,
    training_step: TrainingStep,
    notice: preemption.Notice,
    bar: tqdm,
) -> Iterator[tf_keras.callbacks.Callback]:
    """Yields what looks at the numbers, in the order in which it acts after a step."""
    config = run.config.training
    yield Metrics(
        log,
        bar,
        tokens_per_step=run.tokens_per_step,
        flops_per_step=training_step.architecture.step_flops(
            training_step.model.config,
            run.manifest.sequence_length,
            config.global_batch_size,
        ),
        peak_flops=run.found.peak_flops,
        strategy=run.strategy,
    )
    batch_records = functools.partial(
        reader.batch_records,
        run.manifest,
        global_batch_size=config.global_batch_size,
        seed=config.seed,
    )
    yield DivergenceGuard(config.max_skipped_in_a_row, batch_records)
    if scorer := _scorer(run, training_step):
        yield Evaluation(
            log,
            scorer,
            training_step.task,
            notice.check,
            patience=config.early_stopping_patience,
            interval=config.evaluation_interval,
            num_steps=run.num_steps,
        )


def _showing(
    run: _Run, log: metrics.MetricsLog, training_step: TrainingStep
) -> Iterator[tf_keras.callbacks.Callback]:
    """Yields what is for people's eyes."""
    config = run.config
    if config.tracking.sample_interval:
        yield Samples(
            log,
            training_step.model,
            training_step.architecture,
            functools.partial(_create_sampler, run, training_step.architecture),
            config.tracking.sample_prompt,
            interval=config.tracking.sample_interval,
            num_steps=run.num_steps,
        )
    if config.tracking.histograms:
        yield Histograms(
            log,
            interval=config.training.evaluation_interval,
            num_steps=run.num_steps,
        )


def _create_sampler(
    run: _Run, architecture: Architecture, model: tf_keras.Model
) -> Callable[[str], str]:
    """Returns a function that continues a prompt with a model."""
    config = run.config
    sampler = Sampler(
        model,
        architecture.load_tokenizer(
            files.join(run.data_dir, manifests.TOKENIZER_FOLDER)
        ),
        Settings(config.tracking.sample_tokens, temperature=0.8, top_k=40),
    )

    def sample(prompt: str) -> str:
        ((text,),) = sampler([prompt], seed=config.training.seed)
        return text

    return sample


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
    architectures.check(config.model.architecture)
    tasks.check(config.training.task)
    strategies.check_folder("data_dir", FLAGS.data_dir)
    strategies.check_folder("workdir", FLAGS.workdir)
    for folder in (FLAGS.data_dir, FLAGS.workdir):
        cloud_metadata.warn_of_distance(folder)
    with preemption.naming_loss(), contextlib.ExitStack() as held:
        cluster = Cluster(strategies.from_flags())
        if cluster.is_chief:
            held.enter_context(lease.only_writer(FLAGS.workdir))
            held.enter_context(journal.record_events(FLAGS.workdir))
        train(config, FLAGS.data_dir, FLAGS.workdir, cluster)
    if cluster.is_chief:
        _print_result(FLAGS.data_dir, FLAGS.workdir)


def run() -> None:
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
