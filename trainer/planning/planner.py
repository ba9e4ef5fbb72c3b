"""Plans a run on a TPU, by the TPU's compiler and by arithmetic."""

import dataclasses
import functools
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from configs import tpu
from configs.errors import UserError
from configs.progress import progress
from configs.schema import Config, TrainingConfig
from tfrecords.manifest import Manifest
from trainer.models import classifier
from trainer.models import registry as architectures
from trainer.models.create import model_configuration
from trainer.optimizers import schedule
from trainer.planning import compilation, hardware, search, speed
from trainer.planning.variants import Variant, Variants
from trainer.runtime import strategy as strategies
from trainer.tasks import memorization
from trainer.tasks import registry as tasks
from trainer.tasks.create import end_token
from trainer.tasks.task import Task

# Assumed for a tokenizer that is not known yet.
_GPT2_VOCABULARY = 50257


def make(
    config: Config,
    tpu_type: tpu.TpuType,
    manifest: Manifest | None,
    *,
    find_max: bool = False,
    tune: bool = False,
) -> dict[str, Any]:
    """Plans a run.

    Args:
      config: of the run. With `remat` "auto", the first policy that fits is taken.
      tpu_type: to plan for.
      manifest: of the dataset; None: it does not exist yet.
      find_max: also find the largest microbatch that fits.
      tune: plan for the fastest microbatch and policy that fit the global batch.

    Returns:
      The object that `--json` prints. Bytes are per replica, FLOPs per global batch.
      Figures of the compiler are None where it refused.

    Raises:
      UserError: the batch sizes do not divide, or the records are too long.
      UserError: the step cannot be compiled.
    """
    settings = _start_settings(config.training, tpu_type, find_max or tune)
    job = _job(config, manifest)
    # Of a search, about so many.
    with progress("plan", 12 if find_max or tune else 1, "compilation") as bar:
        variants = _variants(config, tpu_type, job, bar.update)
        variant, compiled, entries = _compile(
            variants, settings, tpu_type, job.length, find_max=find_max, tune=tune
        )
    num_tokens = settings.global_batch_size * job.length
    key = hardware.plan_key(config, job.model_config, job.length)
    return {
        "tpu_type": tpu_type.name,
        "num_replicas": tpu_type.num_replicas,
        **_memory(compiled, tpu_type),
        "extrapolated_from": compiled.get("extrapolated_from"),
        "parameter_count": compiled["parameter_count"],
        "trained_parameter_count": compiled["trained_parameter_count"],
        "optimizer_state_bytes": compiled["optimizer_state_bytes"],
        "sequence_length": job.length,
        "global_batch_size": settings.global_batch_size,
        **variant._asdict(),
        **speed.bounds(
            compiled["flops_per_step"],
            compiled.get("argument_bytes", 0) + compiled.get("output_bytes", 0),
            tpu_type,
            num_tokens=num_tokens,
            num_steps=job.num_steps,
        ),
        **speed.estimate(compiled, tpu_type, num_tokens),
        **entries,
        "warnings": [
            *job.assumptions,
            *warnings(config, manifest, tpu_type, compiled["trained_parameter_count"]),
        ],
        # With an assumed model, no run may follow the plan. A tuned one chose the
        # policy: that is for a run which leaves it open.
        "planned_for": None
        if job.assumptions
        else key | ({"remat": "auto"} if tune else {}),
    }


class _Job(NamedTuple):
    """What a run computes.

    Attributes:
      task: as the run learns it.
      model_config: of its model.
      length: tokens of a record.
      num_steps: of the run; 0: not known.
      assumptions: about what is not known yet, for people.
    """

    task: Task
    model_config: Any
    length: int
    num_steps: int
    assumptions: list[str]


def _job(config: Config, manifest: Manifest | None) -> _Job:
    """Returns what the run computes; raises UserError where its parts do not fit."""
    settings, task = config.training, tasks.get(config.training.task)
    length, num_steps = config.data.sequence_length, settings.num_steps
    if manifest:
        length = manifest.sequence_length
        num_steps = schedule.total_steps(settings, manifest)
        end_token(config, manifest)  # refuses a dataset that does not fit
        task = task.resolve(settings, manifest)
    model_config, assumptions = _model_config(config, manifest)
    if task.classifies:
        labels = task.labels(manifest) if manifest else ("0", "1")
        architecture = architectures.get(config.model.architecture)
        model_config = classifier.configure(architecture, model_config, labels)
    if length > model_config.n_positions:
        raise UserError(
            "`data.sequence_length` must not exceed the model's positions. Received: "
            f"{length} > {model_config.n_positions}."
        )
    return _Job(task, model_config, length, num_steps, assumptions)


def _start_settings(
    settings: TrainingConfig, tpu_type: tpu.TpuType, is_searched: bool
) -> TrainingConfig:
    """Returns settings whose microbatch divides the global batch; a search changes it.

    Raises:
      UserError: it does not divide, and is not searched for.
    """
    if is_searched:
        size = hardware.largest_dividing_microbatch(
            settings.global_batch_size, tpu_type.num_replicas, settings.microbatch_size
        )
        size = size or settings.microbatch_size
        settings = dataclasses.replace(settings, microbatch_size=size)
    strategies.accumulation_steps(settings, tpu_type.num_replicas)  # checks
    return settings


def _compile(
    variants: Variants,
    settings: TrainingConfig,
    tpu_type: tpu.TpuType,
    length: int,
    *,
    find_max: bool,
    tune: bool,
) -> tuple[Variant, dict[str, Any], dict[str, Any]]:
    """Returns the planned variant, its result, and the plan's entries of a search."""
    steps = strategies.accumulation_steps(settings, tpu_type.num_replicas)
    entries: dict[str, Any] = {"max_microbatch_size": None}
    if tune:
        variant, compiled, tuned = _tune(variants, settings, tpu_type, length)
        entries |= tuned
    else:
        variant, compiled = search.first_that_fits(variants, settings, steps)
    if find_max:
        remat = settings.remat
        remat = hardware.REMAT_POLICIES[-1] if remat == "auto" else remat
        start = Variant(settings.microbatch_size, steps, remat)
        entries["max_microbatch_size"] = search.largest_microbatch(
            variants, start, tpu_type.facts.hbm_bytes
        )
    return variant, compiled, entries


def _variants(
    config: Config,
    tpu_type: tpu.TpuType,
    job: _Job,
    after_each: Callable[[], Any],
) -> Variants:
    """Returns the variants of the run's step for a TPU."""
    lower = functools.partial(
        compilation.run_in_process,
        compilation.lower_run,
        config=config,
        architecture=architectures.get(config.model.architecture),
        task=job.task,
        model_config=job.model_config,
        sequence_length=job.length,
        num_steps=job.num_steps or 10**6,
        num_replicas=tpu_type.num_replicas,
    )
    return Variants(
        lower,
        lambda hlo, memory_only: compilation.compile_hlo(hlo, tpu_type, memory_only),
        # By transformers' name for it; an architecture need not have layers.
        getattr(job.model_config, "num_hidden_layers", 1),
        tpu_type.facts.hbm_bytes,
        layers_are_alike=not config.training.trainable,
        after_each=after_each,
    )


def _tune(
    variants: Variants,
    settings: TrainingConfig,
    tpu_type: tpu.TpuType,
    length: int,
) -> tuple[Variant, dict[str, Any], dict[str, Any]]:
    """Chooses the fastest variant; returns it, its result and the plan's entries.

    Raises:
      UserError: nothing fits, or the compiler does not show its program.
    """
    start = time.perf_counter()
    share = settings.global_batch_size // tpu_type.num_replicas
    hbm = tpu_type.facts.hbm_bytes
    ranked = search.tune(variants, share, settings.microbatch_size, hbm)
    if not ranked:
        raise UserError(
            f"`--tune` needs a step that fits a {tpu_type.name}. Received: one that "
            "does not, with microbatch 1 and everything recomputed. Use a larger TPU, "
            "`model.lora.rank`, or a shorter `data.sequence_length`."
        )
    num_tokens = settings.global_batch_size * length
    candidates = [
        {
            **variant._asdict(),
            "peak_bytes": result["peak_bytes"],
            **speed.estimate(result, tpu_type, num_tokens),
        }
        for variant, result in ranked
    ]
    variant, result = ranked[0]
    seconds = candidates[0]["step_seconds_estimate"]
    entries = {
        "tuned": {**variant._asdict(), "step_seconds_estimate": seconds},
        "candidates": candidates,
        "tuning_seconds": time.perf_counter() - start,
    }
    return variant, result, entries


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
        **{name: compiled.get(name) if compiled["fits"] else None for name in names},
        "compile_seconds": compiled["compile_seconds"],
    }


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
