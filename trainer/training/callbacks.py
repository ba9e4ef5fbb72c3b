"""Creates the callbacks of a run, in the order in which they act after an execution."""

import functools
from collections.abc import Callable, Iterator

import tf_keras
from tqdm import tqdm

from tfrecords import manifest as manifests
from tfrecords import reader
from tfrecords.storage import files
from tfrecords.windows import Windows
from trainer.callbacks.evaluation import Evaluation
from trainer.callbacks.guard import DivergenceGuard
from trainer.callbacks.histograms import Histograms
from trainer.callbacks.metrics import Metrics
from trainer.callbacks.samples import Samples
from trainer.evaluation.scoring import Scorer
from trainer.generation.sampling import Sampler
from trainer.generation.settings import Settings
from trainer.models import create
from trainer.models.architecture import Architecture
from trainer.run_dir.metrics import MetricsLog
from trainer.runtime import strategy as strategies
from trainer.tasks import host_memory, plausibility
from trainer.tasks.create import flops
from trainer.tasks.step import TrainingStep
from trainer.training.run import Run


def measuring(
    run: Run,
    log: MetricsLog,
    training_step: TrainingStep,
    bar: tqdm,
    check_preemption: Callable[[], None],
) -> Iterator[tf_keras.callbacks.Callback]:
    """Yields the callbacks that log metrics, and end a run by them.

    Args:
      run: what is trained.
      log: where the metrics go.
      training_step: owns the model.
      bar: the progress of the run, in steps.
      check_preemption: called between two batches of an evaluation.
    """
    config = run.config.training
    yield Metrics(
        log,
        bar,
        tokens_per_step=run.tokens_per_step,
        flops_per_step=flops(
            training_step, run.manifest.sequence_length, config.global_batch_size
        ),
        peak_flops=run.hardware.peak_flops,
        strategy=run.strategy,
    )
    batch_records = functools.partial(
        reader.batch_records,
        run.manifest,
        global_batch_size=config.global_batch_size,
        seed=config.seed,
    )
    yield DivergenceGuard(config.max_skipped_in_a_row, batch_records)
    if "validation" in run.manifest.splits:
        windows = _validation_windows(run)
        batch_size = config.microbatch_size
        if strategies.is_cpu(run.strategy):
            batch_size = host_memory.evaluation_batch_size(
                batch_size, run.manifest.sequence_length
            )
        yield Evaluation(
            log,
            Scorer(
                training_step,
                run.strategy,
                windows,
                batch_size=batch_size,
            ),
            training_step.task,
            check_preemption,
            patience=config.early_stopping_patience,
            lowest_loss=plausibility.lowest_loss(windows)
            if training_step.task.memorization
            else None,
            interval=config.evaluation_interval,
            num_steps=run.num_steps,
        )


def displaying(
    run: Run, log: MetricsLog, training_step: TrainingStep
) -> Iterator[tf_keras.callbacks.Callback]:
    """Yields the callbacks that the config asks for and only the chief needs."""
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


def _validation_windows(run: Run) -> Windows:
    """Returns the windows of the validation split, each token in one of them."""
    length = run.manifest.sequence_length
    return Windows(
        run.data_dir,
        run.manifest,
        split="validation",
        context_length=length,
        stride=length,
    )


def _create_sampler(
    run: Run, architecture: Architecture, model: tf_keras.Model
) -> Callable[[str], str]:
    """Returns a function that continues a prompt with a model."""
    config = run.config
    sampler = Sampler(
        architecture,
        model,
        create.load_tokenizer(
            architecture, files.join(run.data_dir, manifests.TOKENIZER_FOLDER), model
        ),
        Settings(config.tracking.sample_tokens, temperature=0.8, top_k=40),
        start_token=run.manifest.start_token,
        padding_text=config.tracking.sample_padding_text,
    )

    def sample(prompt: str) -> str:
        ((text,),) = sampler([prompt], seed=config.training.seed)
        return text

    return sample
