"""Fits a run's config to the hardware that it starts on.

The hardware is compared with the expected one. On a TPU, microbatch and
rematerialization follow the plan that `trainer.plan --workdir=…` has left for its type,
before anything is built.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from absl import logging

from configs import tpu
from configs.errors import UserError
from configs.schema import Config
from tfrecords.manifest import Manifest
from trainer.models.create import model_configuration
from trainer.runtime.strategy import DetectedHardware

PLAN_FORMAT_VERSION = 1
# From the least recomputation to the least memory.
REMAT_POLICIES = ("none", "attention", "block")

# Returns the plan for a TPU type; None: there is no such plan.
PlanLoader = Callable[[str], dict[str, Any] | None]


def resolve_hardware_config(
    config: Config,
    manifest: Manifest,
    hardware: DetectedHardware,
    load_plan: PlanLoader,
) -> Config:
    """Resolves the hardware-dependent fields of a config.

    Args:
      config: of the run; it is not changed.
      manifest: of the run's dataset.
      hardware: that the run starts on.
      load_plan: of the run's workdir.

    Returns:
      A config whose `training.remat` is not "auto". "auto" also takes the microbatch of
      a tuned plan for the same global batch. On another TPU than the expected one,
      `training.microbatch_size` is the largest that this TPU's plan allows.

    Raises:
      UserError: the hardware is not the expected one, or a plan is missing or does not
        allow the run.
    """
    if not check(config, hardware):
        size = _planned_microbatch_size(config, manifest, hardware, load_plan)
        config = _replace_training(config, microbatch_size=size)
    if config.training.remat == "auto":
        fields = _planned_fields(config, manifest, hardware, load_plan)
        logging.info("remat auto resolves to %s", fields)
        config = _replace_training(config, **fields)
    return config


def _replace_training(config: Config, **fields: Any) -> Config:
    training = dataclasses.replace(config.training, **fields)
    return dataclasses.replace(config, training=training)


def check(config: Config, hardware: DetectedHardware) -> bool:
    """Returns whether the hardware is the expected one, or a TPU of unknown type.

    Raises:
      UserError: it is not, and the config does not allow the run to adapt.
    """
    expected = config.hardware.tpu_type
    if not expected or hardware.name == expected:
        return True
    right_size = hardware.num_replicas == tpu.parse(expected).num_replicas
    if hardware.kind == "TPU" and hardware.tpu_type is None and right_size:
        logging.warning("a %s is expected; the type of this TPU is unknown", expected)
        return True
    if config.hardware.on_mismatch == "adapt" and hardware.tpu_type:
        return False
    received = _describe(hardware.tpu_type) if hardware.tpu_type else hardware.name
    raise UserError(
        f"`hardware.tpu_type` expects {_describe(tpu.parse(expected))}. Received: "
        f"{received}. Start on a {expected}; or set `--config.hardware.tpu_type=` to "
        "this hardware; or, on another TPU, set "
        "`--config.hardware.on_mismatch=adapt`."
    )


def plan_key(config: Config, model_config: Any, sequence_length: int) -> dict[str, Any]:
    """Returns what a plan depends on besides the TPU type and the batch sizes."""
    lora = config.model.lora
    names = (
        *("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"),
        "embedding_size",
    )
    return {
        "format_version": PLAN_FORMAT_VERSION,
        **{name: getattr(model_config, name, None) for name in names},
        "sequence_length": sequence_length,
        "optimizer": config.optimizer.name,
        "beta_1": config.optimizer.beta_1,
        "dropout": config.training.dropout > 0,
        "precision": config.training.precision,
        "remat": config.training.remat,
        # None for what older plans do not have.
        "architecture": _unless("gpt2", config.model.architecture),
        "task": _unless("causal_lm", config.training.task),
        "attention": _unless("causal", config.data.attention),
        "trainable": config.training.trainable or None,
        "lora": dataclasses.asdict(lora) if lora.rank else None,
    }


def _unless(default: str, value: str) -> str | None:
    return None if value == default else value


def largest_dividing_microbatch(
    global_batch_size: int, num_replicas: int, limit: int
) -> int:
    """Returns the largest microbatch up to `limit` that keeps the global batch.

    0: the replicas do not divide the global batch.
    """
    share, rest = divmod(global_batch_size, num_replicas)
    sizes = range(min(share, limit), 0, -1)
    return 0 if rest else next((size for size in sizes if share % size == 0), 0)


def _planned_microbatch_size(
    config: Config,
    manifest: Manifest,
    hardware: DetectedHardware,
    load_plan: PlanLoader,
) -> int:
    """Returns the microbatch that splits the same global batch over another TPU."""
    training = config.training
    plan = _matching_plan(config, manifest, hardware.name, load_plan)
    limit = plan["max_microbatch_size"] or plan.get("tuned", {}).get("microbatch_size")
    size = largest_dividing_microbatch(
        training.global_batch_size, hardware.num_replicas, limit or 0
    )
    if not size:
        raise UserError(
            f"No microbatch that fits a {hardware.name} keeps "
            f"`training.global_batch_size`. Received: {training.global_batch_size} for "
            f"{hardware.num_replicas} replicas, each of which holds at most {limit} "
            "sequences by its plan. Choose a multiple of the replicas, or plan with "
            "`--find_max_microbatch` and `training.remat=block`."
        )
    logging.warning(
        "a %s is expected, but this is a %s: microbatch %d instead of %d, %d "
        "accumulation steps, the same global batch of %d",
        config.hardware.tpu_type,
        hardware.name,
        size,
        training.microbatch_size,
        training.global_batch_size // hardware.num_replicas // size,
        training.global_batch_size,
    )
    return size


def _planned_fields(
    config: Config,
    manifest: Manifest,
    hardware: DetectedHardware,
    load_plan: PlanLoader,
) -> dict[str, Any]:
    """Returns the fields of `training` that remat "auto" stands for."""
    if hardware.kind != "TPU":
        return {"remat": REMAT_POLICIES[0]}
    name = hardware.name if hardware.tpu_type else config.hardware.tpu_type
    plan = _matching_plan(config, manifest, name, load_plan)
    training = config.training
    tuned = plan.get("tuned")
    if tuned and plan["global_batch_size"] == training.global_batch_size:
        return {name: tuned[name] for name in ("microbatch_size", "remat")}
    size = training.microbatch_size
    accumulates = training.global_batch_size > size * hardware.num_replicas
    # Accumulated sums take memory: a plan without them does not cover a run with them.
    covered = size == plan["microbatch_size"] and (
        not accumulates or plan["accumulation_steps"] > 1
    )
    if covered and plan["fits"]:
        return {"remat": plan["remat"]}
    if size <= (plan["max_microbatch_size"] or 0):
        return {"remat": REMAT_POLICIES[-1]}
    raise UserError(
        f"The plan for {name} must say that the microbatch fits. Received: {size}"
        f"{', accumulated' if accumulates else ''}; and a plan for "
        f"{plan['microbatch_size']} x {plan['accumulation_steps']} accumulation steps "
        f"with fits={plan['fits']} and max_microbatch_size="
        f"{plan['max_microbatch_size']}. Plan this run's sizes with "
        "`--find_max_microbatch`, or lower `training.microbatch_size`."
    )


def _matching_plan(
    config: Config, manifest: Manifest, tpu_type: str, load_plan: PlanLoader
) -> dict[str, Any]:
    """Returns the plan for a TPU type; raises UserError unless it is of this run."""
    model_config = model_configuration(config.model, manifest)
    key = plan_key(config, model_config, manifest.sequence_length)
    plan = load_plan(tpu_type)
    if plan is None:
        problem = "not found"
    else:
        planned = plan["planned_for"]
        problem = ", ".join(
            f"{field} {planned.get(field)}, not {value}"
            for field, value in key.items()
            if planned.get(field) != value
        )
        if not problem:
            return plan
    raise UserError(
        f"A plan for {tpu_type or 'the TPU'} is needed in `WORKDIR/plans`: {problem}. "
        f"Make it with `python -m trainer.plan --tpu_type={tpu_type or 'TYPE'} "
        "--workdir=… --find_max_microbatch` and the config and data of this run, where "
        "the extra `plan` is installed; or set `training.remat` and "
        "`training.microbatch_size`."
    )


def _describe(tpu_type: tpu.TpuType) -> str:
    gib = tpu_type.facts.hbm_bytes / 2**30
    return f"{tpu_type.name} ({tpu_type.num_replicas} replicas of {gib:.2f} GiB)"
