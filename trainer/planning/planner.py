"""Plans a run on a TPU, by the TPU's compiler and by arithmetic."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

from absl import logging

from configs import tpu
from configs.errors import UserError
from configs.progress import progress
from configs.schema import Config, TrainingConfig
from tfrecords.manifest import Manifest
from trainer.models import classifier
from trainer.models import registry as architectures
from trainer.models.create import model_configuration
from trainer.optimizers import schedule
from trainer.planning import compilation, hardware
from trainer.runtime import strategy as strategies
from trainer.tasks import memorization
from trainer.tasks import registry as tasks

# The search for the largest microbatch ends here.
_LARGEST_MICROBATCH = 4096
# Assumed for a tokenizer that is not known yet.
_GPT2_VOCABULARY = 50257


def make(
    config: Config, tpu_type: tpu.TpuType, manifest: Manifest | None, find_max: bool
) -> dict[str, Any]:
    """Plans a run.

    Args:
      config: of the run. With `remat` "auto", the first policy that fits is taken.
      tpu_type: to plan for.
      manifest: of the dataset; None: it does not exist yet.
      find_max: also find the largest microbatch that fits.

    Returns:
      The object that `--json` prints. Bytes are per replica, FLOPs per global batch.
      Figures of the compiler are None where it refused.

    Raises:
      UserError: the batch sizes do not divide, or the records are too long.
      UserError: the step cannot be compiled.
    """
    settings = config.training
    num_replicas = tpu_type.num_replicas
    if find_max:
        # The search only needs a possible microbatch to start from.
        size = hardware.largest_dividing_microbatch(
            settings.global_batch_size, num_replicas, settings.microbatch_size
        )
        size = size or settings.microbatch_size
        settings = dataclasses.replace(settings, microbatch_size=size)
    accumulation_steps = strategies.accumulation_steps(settings, num_replicas)
    length = manifest.sequence_length if manifest else config.data.sequence_length
    num_steps = settings.num_steps
    if manifest:
        num_steps = schedule.total_steps(settings, manifest)
    architecture = architectures.get(config.model.architecture)
    task = tasks.get(settings.task)
    if manifest:
        task = task.resolve(settings, manifest)
    model_config, assumptions = _model_config(config, manifest)
    if task.classifies:
        labels = task.labels(manifest) if manifest else ("0", "1")
        model_config = classifier.configure(architecture, model_config, labels)
    if length > model_config.n_positions:
        raise UserError(
            "`data.sequence_length` must not exceed the model's positions. Received: "
            f"{length} > {model_config.n_positions}."
        )
    compile_run = functools.partial(
        compilation.compile_run,
        tpu_type,
        config=config,
        architecture=architecture,
        task=task,
        model_config=model_config,
        sequence_length=length,
        num_steps=num_steps or 10**6,
    )
    remat, compiled, largest = compile_first_that_fits(
        compile_run, settings, accumulation_steps, tpu_type.facts.hbm_bytes, find_max
    )
    return {
        "tpu_type": tpu_type.name,
        "num_replicas": num_replicas,
        **_memory(compiled, tpu_type),
        "parameter_count": compiled["parameter_count"],
        "trained_parameter_count": compiled["trained_parameter_count"],
        "optimizer_state_bytes": compiled["optimizer_state_bytes"],
        "sequence_length": length,
        "global_batch_size": settings.global_batch_size,
        "microbatch_size": settings.microbatch_size,
        "accumulation_steps": accumulation_steps,
        "remat": remat,
        "max_microbatch_size": largest,
        **_bounds(
            compiled["flops_per_step"],
            compiled.get("argument_bytes", 0) + compiled.get("output_bytes", 0),
            tpu_type,
            num_tokens=settings.global_batch_size * length,
            num_steps=num_steps,
        ),
        **_estimate(compiled, tpu_type, settings.global_batch_size * length),
        "warnings": [
            *assumptions,
            *warnings(config, manifest, tpu_type, compiled["trained_parameter_count"]),
        ],
        # With an assumed model, no run may follow the plan.
        "planned_for": (
            None if assumptions else hardware.plan_key(config, model_config, length)
        ),
    }


def compile_first_that_fits(
    compile_run: Callable[..., dict[str, Any]],
    settings: TrainingConfig,
    accumulation_steps: int,
    hbm_bytes: int,
    find_max: bool,
) -> tuple[str, dict[str, Any], int | None]:
    """Compiles until a policy fits, and for the largest microbatch.

    Returns:
      The policy, the compiler's result for it, and the largest microbatch that fits;
      None: it was not searched for.
    """
    policies: tuple[str, ...] = (settings.remat,)
    if settings.remat == "auto":
        policies = hardware.REMAT_POLICIES
    # A bisection takes about this many guesses.
    num_guesses = _LARGEST_MICROBATCH.bit_length() if find_max else 0
    with progress("plan", len(policies) + num_guesses, "compilation") as bar:

        @functools.cache
        def compile_step(
            microbatch_size: int, remat: str, num_steps: int
        ) -> dict[str, Any]:
            result = compile_run(
                microbatch_size=microbatch_size,
                accumulation_steps=num_steps,
                remat=remat,
            )
            size = (
                f"peak {gib(result['peak_bytes'])}" if result["fits"] else "too large"
            )
            logging.info("microbatch %d, remat %s: %s", microbatch_size, remat, size)
            bar.update()
            return result

        for remat in policies:
            result = compile_step(settings.microbatch_size, remat, accumulation_steps)
            if result["fits"]:
                break
        largest = None
        if find_max:
            # With accumulation, whose sums take memory: they are needed when the global
            # batch is split into this microbatch.
            num_steps = max(accumulation_steps, 2)
            largest = largest_microbatch(
                lambda size: compile_step(size, policies[-1], num_steps),
                settings.microbatch_size,
                hbm_bytes,
            )
    return remat, result, largest


def _memory(compiled: dict[str, Any], tpu_type: tpu.TpuType) -> dict[str, Any]:
    """Returns the compiler's figures; None for those it does not give."""
    names = (
        "argument_bytes",
        "temporary_bytes",
        "generated_code_bytes",
        "peak_bytes",
        "replicas_added_up",
    )
    return {
        "fits": compiled["fits"],
        "message": compiled["message"],
        "hbm_available_bytes": tpu_type.facts.hbm_bytes,
        **{name: compiled.get(name) for name in names},
        "compile_seconds": compiled["compile_seconds"],
    }


def _bounds(
    step_flops: int,
    moved_bytes: int,
    tpu_type: tpu.TpuType,
    *,
    num_tokens: int,
    num_steps: int,
) -> dict[str, Any]:
    """Returns bounds on the speed: all matrix products at the peak, or the memory.

    Args:
      step_flops: of a global batch.
      moved_bytes: that a step moves at least: weights, optimizer state and batch are
        read, and all but the batch are written.
      tpu_type: to plan for.
      num_tokens: of a step.
      num_steps: of the run; 0: not known.
    """
    seconds = max(
        step_flops / tpu_type.num_replicas / tpu_type.facts.peak_flops,
        moved_bytes / tpu_type.facts.bandwidth,
    )
    return {
        "flops_per_step": step_flops,
        "step_seconds_lower_bound": seconds,
        "tokens_per_second_upper_bound": num_tokens / seconds,
        "num_steps": num_steps or None,
        "hours_lower_bound": num_steps * seconds / 3600 if num_steps else None,
    }


def _estimate(
    compiled: dict[str, Any], tpu_type: tpu.TpuType, num_tokens: int
) -> dict[str, Any]:
    """Returns the compiler's own estimate of the speed; None where it gives none.

    The sum over the replicas is added by a model, since the compiler leaves it out: a
    ring through all chips, which send in both directions at once.

    Args:
      compiled: result of `compilation.compile_run`.
      tpu_type: to plan for.
      num_tokens: of a step.
    """
    step_time, chips = compiled.get("step_time"), tpu_type.num_chips
    names = ("step_seconds_estimate", "tokens_per_second_estimate", "step_parts")
    if step_time is None:
        return dict.fromkeys(names)
    num_bytes = 4 * compiled["trained_parameter_count"]  # gradients in float32
    moved = 2 * (chips - 1) / chips * num_bytes
    all_reduce = moved / (2 * tpu_type.facts.link)
    seconds = [step_time[name] + all_reduce for name in ("seconds_low", "seconds_high")]
    parts = {**step_time["parts"], "all-reduce": all_reduce}
    speeds = [num_tokens / value for value in reversed(seconds)]
    return dict(zip(names, (seconds, speeds, parts), strict=True))


def largest_microbatch(
    compile_step: Callable[[int], dict[str, Any]], start: int, hbm_bytes: int
) -> int:
    """Finds the largest microbatch that fits, by bisection.

    Every other guess extrapolates the growth of the peak.

    Args:
      compile_step: microbatch size -> the result of `tpu_compiler.compile_step`.
      start: the first guess.
      hbm_bytes: available to a replica.

    Returns:
      The microbatch size; 0: not even one sequence fits.
    """
    peaks: dict[int, int] = {}
    low, high, guess = 0, _LARGEST_MICROBATCH + 1, start
    by_growth = False
    while high - low > 1:
        result = compile_step(guess)
        if result["fits"]:
            low, peaks[guess] = guess, result["peak_bytes"]
        else:
            high = guess
        guess = (low + high) // 2 if high <= _LARGEST_MICROBATCH else 2 * low
        by_growth = not by_growth
        if len(peaks) >= 2 and by_growth:
            (first, lower), (second, upper) = sorted(peaks.items())[-2:]
            growth = max((upper - lower) / (second - first), 1)
            guess = low + int((hbm_bytes - upper) / growth)
        guess = min(max(guess, low + 1), high - 1)
    return low


def _model_config(config: Config, manifest: Manifest | None) -> tuple[Any, list[str]]:
    """Returns the configuration of the run's model, and what had to be assumed."""
    if manifest:
        return model_configuration(config.model, manifest), []
    architecture = architectures.get(config.model.architecture)
    vocabulary, assumptions = config.data.vocab_size, []
    if config.data.tokenizer != "train":
        vocabulary = _GPT2_VOCABULARY
        if not config.data.tokenizer.startswith("gpt2"):
            assumptions = [
                f"Without a dataset, a vocabulary of {vocabulary} is assumed."
            ]
    checkpoint = config.model.initial_checkpoint
    if checkpoint:
        try:
            return architecture.load_configuration(checkpoint), []
        except UserError:
            if os.path.isdir(checkpoint):
                raise
            assumptions.append(
                f"{checkpoint} cannot be read here: the shape in `model` is assumed."
            )
    return architecture.configure(config.model, vocabulary), assumptions


def warnings(
    config: Config,
    manifest: Manifest | None,
    tpu_type: tpu.TpuType,
    parameter_count: int,
) -> list[str]:
    """Returns warnings about the dataset, for the TPU and the model."""
    if manifest is None:
        return ["`--data_dir` holds no dataset yet: its data are not checked."]
    messages = []
    split = manifest.split("train")
    if len(split.shards) < tpu_type.num_hosts:
        messages.append(
            f"{len(split.shards)} shards are too few for the {tpu_type.num_hosts} "
            f"hosts of a {tpu_type.name}: preprocess with `--config.data.num_shards="
            f"{tpu_type.num_hosts}` or a multiple of it."
        )
    message = memorization.expected(
        split.tokens,
        parameter_count,
        pretrained=bool(config.model.initial_checkpoint),
    )
    return [*messages, message] if message else messages


def gib(num_bytes: int | None) -> str:
    """Returns bytes as GiB; "-" where they are not known."""
    return "-" if num_bytes is None else f"{num_bytes / 2**30:,.2f} GiB"
