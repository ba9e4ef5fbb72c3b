"""What the compiler and arithmetic say of a run on a TPU: one dictionary."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

from absl import logging

from configs import tpu
from configs.errors import UserError
from configs.schema import Config, TrainingConfig
from tfrecords.manifest import Manifest
from trainer.models import registry as architectures
from trainer.models.create import model_configuration
from trainer.optimizers import schedule
from trainer.planning import compilation, hardware
from trainer.runtime import strategy as strategies
from trainer.tasks import memorization
from trainer.tasks import registry as tasks

# A microbatch of more sequences than this is not looked for.
_LARGEST_MICROBATCH = 4096
# Of a tokenizer that is not known yet.
_GPT2_VOCABULARY = 50257


def make(
    config: Config, tpu_type: tpu.TpuType, manifest: Manifest | None, find_max: bool
) -> dict[str, Any]:
    """Plans a run.

    Args:
      config: of the run. With `remat` "auto", the first policy that fits is taken.
      tpu_type: where it is to run.
      manifest: of its dataset, where there is one already.
      find_max: also find the largest microbatch that fits.

    Returns:
      What `--json` prints. Bytes are a replica's, FLOPs the whole global batch's; what
      the compiler did not say, because it refused, is None.

    Raises:
      UserError: the batch sizes do not divide, or the records are too long.
      UserError: the step cannot be compiled.
    """
    settings = config.training
    num_replicas = tpu_type.num_replicas
    if find_max:
        # The microbatch is looked for: this one only has to be possible.
        size = hardware.largest_share(
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
    shape, unsure = _shape(config, manifest)
    if length > shape.n_positions:
        raise UserError(
            "`data.sequence_length` must not exceed the model's positions. Received: "
            f"{length} > {shape.n_positions}."
        )
    compiled = functools.partial(
        compilation.compile_run,
        tpu_type,
        config=config,
        architecture=architecture,
        task=tasks.get(settings.task),
        shape=shape,
        sequence_length=length,
        num_steps=num_steps or 10**6,
    )
    remat, found, largest = _compile(
        compiled, settings, accumulation_steps, tpu_type.facts.hbm_bytes, find_max
    )
    return {
        "tpu_type": tpu_type.name,
        "num_replicas": num_replicas,
        **_memory(found, tpu_type),
        "parameter_count": found["parameter_count"],
        "optimizer_state_bytes": found["optimizer_state_bytes"],
        "sequence_length": length,
        "global_batch_size": settings.global_batch_size,
        "microbatch_size": settings.microbatch_size,
        "accumulation_steps": accumulation_steps,
        "remat": remat,
        "max_microbatch_size": largest,
        **_bounds(
            architecture.step_flops(shape, length, settings.global_batch_size),
            found.get("argument_bytes", 0) + found.get("output_bytes", 0),
            tpu_type,
            num_tokens=settings.global_batch_size * length,
            num_steps=num_steps,
        ),
        "warnings": [
            *unsure,
            *warnings(config, manifest, tpu_type, found["parameter_count"]),
        ],
        # Of a shape that is not sure, the plan is for nobody.
        "planned_for": None if unsure else hardware.plan_key(config, shape, length),
    }


def _compile(
    compiled: Callable[..., dict[str, Any]],
    settings: TrainingConfig,
    accumulation_steps: int,
    hbm_bytes: int,
    find_max: bool,
) -> tuple[str, dict[str, Any], int | None]:
    """Returns the policy taken, what was compiled, and the largest microbatch."""

    @functools.cache
    def fits(microbatch_size: int, remat: str, num: int) -> dict[str, Any]:
        found = compiled(
            microbatch_size=microbatch_size, accumulation_steps=num, remat=remat
        )
        needs = f"peak {gib(found['peak_bytes'])}" if found["fits"] else "too large"
        logging.info("microbatch %d, remat %s: %s", microbatch_size, remat, needs)
        return found

    policies: tuple[str, ...] = (settings.remat,)
    if settings.remat == "auto":
        policies = hardware.REMAT_POLICIES
    for remat in policies:
        found = fits(settings.microbatch_size, remat, accumulation_steps)
        if found["fits"]:
            break
    largest = None
    if find_max:
        # With accumulation, whose sums need room: it is there when the global batch is
        # split into this microbatch.
        num = max(accumulation_steps, 2)
        largest = largest_microbatch(
            lambda size: fits(size, policies[-1], num),
            settings.microbatch_size,
            hbm_bytes,
        )
    return remat, found, largest


def _memory(found: dict[str, Any], tpu_type: tpu.TpuType) -> dict[str, Any]:
    """Returns what the compiler said; None where it refused and so says nothing."""
    names = (
        "argument_bytes",
        "temporary_bytes",
        "generated_code_bytes",
        "peak_bytes",
        "replicas_added_up",
    )
    return {
        "fits": found["fits"],
        "message": found["message"],
        "hbm_available_bytes": tpu_type.facts.hbm_bytes,
        **{name: found.get(name) for name in names},
        "compile_seconds": found["compile_seconds"],
    }


def _bounds(
    step_flops: int,
    moved_bytes: int,
    tpu_type: tpu.TpuType,
    *,
    num_tokens: int,
    num_steps: int,
) -> dict[str, Any]:
    """Returns what no run can be faster than: all products at the peak, or memory.

    Weights, optimizer state and batch are read at least once a step, and all but the
    batch are written: `moved_bytes`.
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


def largest_microbatch(
    compiled: Callable[[int], dict[str, Any]], start: int, hbm_bytes: int
) -> int:
    """Finds the largest microbatch that fits: it does, and one more does not.

    Bisection, of which every other guess is made by the growth of the peak.

    Args:
      compiled: microbatch size -> what `tpu_compiler.compile_step` returns.
      start: the first guess.
      hbm_bytes: available.

    Returns:
      0 where not even one sequence fits.
    """
    peaks: dict[int, int] = {}
    low, high, guess = 0, _LARGEST_MICROBATCH + 1, start
    by_growth = False
    while high - low > 1:
        found = compiled(guess)
        if found["fits"]:
            low, peaks[guess] = guess, found["peak_bytes"]
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


def _shape(config: Config, manifest: Manifest | None) -> tuple[Any, list[str]]:
    """Returns the shape of the model that `train` will build, and what is not sure."""
    if manifest:
        return model_configuration(config.model, manifest), []
    architecture = architectures.get(config.model.architecture)
    vocabulary, unsure = config.data.vocab_size, []
    if config.data.tokenizer != "train":
        vocabulary = _GPT2_VOCABULARY
        if not config.data.tokenizer.startswith("gpt2"):
            unsure = [f"Without a dataset, a vocabulary of {vocabulary} is assumed."]
    checkpoint = config.model.initial_checkpoint
    if checkpoint:
        try:
            return architecture.load_configuration(checkpoint), []
        except UserError:
            if os.path.isdir(checkpoint):
                raise
            what = (
                f"{checkpoint} cannot be read here: this is for the shape in `model`."
            )
            unsure.append(what)
    return architecture.configure(config.model, vocabulary), unsure


def warnings(
    config: Config,
    manifest: Manifest | None,
    tpu_type: tpu.TpuType,
    parameter_count: int,
) -> list[str]:
    """Returns what of the data does not suit the TPU or the model."""
    if manifest is None:
        return ["There is no dataset in `--data_dir` yet: it was not looked at."]
    found = []
    split = manifest.split("train")
    if len(split.shards) < tpu_type.num_hosts:
        found.append(
            f"{len(split.shards)} shards are too few for the {tpu_type.num_hosts} "
            f"hosts of a {tpu_type.name}: preprocess with `--config.data.num_shards="
            f"{tpu_type.num_hosts}` or a multiple of it."
        )
    by_heart = memorization.expected(
        split.tokens,
        parameter_count,
        pretrained=bool(config.model.initial_checkpoint),
    )
    return [*found, by_heart] if by_heart else found


def gib(num_bytes: int | None) -> str:
    """Returns how a person reads it; "-" of what is not known."""
    return "-" if num_bytes is None else f"{num_bytes / 2**30:,.2f} GiB"
