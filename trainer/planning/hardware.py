"""The hardware that a run expects, the plans made for it, and that which is there.

`trainer.plan --workdir=…` leaves its plan in `WORKDIR/plans/TPU_TYPE.json`. By it a run
decides what fits before anything is built.
"""

import dataclasses
import json
from typing import Any

from absl import logging

from configs import tpu
from configs.errors import UserError
from configs.schema import Config
from tfrecords.manifest import Manifest
from tfrecords.storage import files
from trainer.models.create import model_configuration
from trainer.runtime.strategy import Found

PLAN_FORMAT_VERSION = 1
# What is computed again, from the least work to the least memory.
REMAT_POLICIES = ("none", "attention", "block")


def settle(config: Config, manifest: Manifest, found: Found, workdir: str) -> Config:
    """Compares what is there with what is expected, and decides what was left open.

    Args:
      config: of the run.
      manifest: of its dataset.
      found: the hardware.
      workdir: where plans were left.

    Returns:
      The config to train with. `training.remat` is not "auto" any more; on another TPU
      than expected the microbatch may be smaller or larger, by that TPU's plan.

    Raises:
      UserError: the hardware is another, or a plan is missing or says no.
    """
    config = dataclasses.replace(config, training=dataclasses.replace(config.training))
    if not check(config, found):
        _adapt(config, manifest, found, workdir)
    if config.training.remat == "auto":
        config.training.remat = _remat(config, manifest, found, workdir)
        logging.info("remat auto is: %s", config.training.remat)
    return config


def check(config: Config, found: Found) -> bool:
    """Tells whether the hardware is the one expected, or of no known type.

    Raises:
      UserError: it is another, and the run cannot or shall not adapt.
    """
    expected = config.hardware.tpu_type
    if not expected or found.name == expected:
        return True
    right_size = found.num_replicas == tpu.parse(expected).num_replicas
    if found.kind == "TPU" and found.tpu_type is None and right_size:
        logging.warning("%s is expected; this TPU does not tell its type", expected)
        return True
    if config.hardware.on_mismatch == "adapt" and found.tpu_type:
        return False
    raise UserError(
        f"`hardware.tpu_type` expects {_describe(tpu.parse(expected))}. Received: "
        f"{_describe(found.tpu_type) if found.tpu_type else found.name}. Start on a "
        f"{expected}; or set `--config.hardware.tpu_type=` to what is there; or, on "
        "another TPU, `--config.hardware.on_mismatch=adapt`."
    )


def plan_key(config: Config, shape: Any, sequence_length: int) -> dict[str, Any]:
    """Returns what a plan depends on, beside the TPU and the sizes that it names."""
    names = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner")
    return {
        "format_version": PLAN_FORMAT_VERSION,
        **{name: getattr(shape, name, None) for name in names},
        "sequence_length": sequence_length,
        "optimizer": config.optimizer.name,
        "beta_1": config.optimizer.beta_1,
        "dropout": config.training.dropout > 0,
        "precision": config.training.precision,
        "remat": config.training.remat,
    }


def save_plan(workdir: str, plan: dict[str, Any]) -> None:
    """Keeps a plan for the run in `workdir`."""
    text = json.dumps(plan, indent=1) + "\n"
    files.write(_plan_path(workdir, plan["tpu_type"]), text.encode())


def largest_share(global_batch_size: int, num_replicas: int, limit: int) -> int:
    """Returns the largest microbatch up to `limit` that keeps the global batch.

    0: there is none, since the replicas do not divide the global batch.
    """
    share, rest = divmod(global_batch_size, num_replicas)
    sizes = range(min(share, limit), 0, -1)
    return 0 if rest else next((size for size in sizes if share % size == 0), 0)


def _adapt(config: Config, manifest: Manifest, found: Found, workdir: str) -> None:
    """Splits the global batch anew, as the plan of the TPU found allows."""
    training = config.training
    limit = _load_plan(config, manifest, found.name, workdir)["max_microbatch_size"]
    size = largest_share(training.global_batch_size, found.num_replicas, limit or 0)
    if not size:
        raise UserError(
            f"No microbatch that fits a {found.name} keeps "
            f"`training.global_batch_size`. Received: {training.global_batch_size} for "
            f"{found.num_replicas} replicas, of which each can take {limit} sequences "
            "at once, says its plan. Choose a multiple of the replicas, or plan with "
            "`--find_max_microbatch` and `training.remat=block`."
        )
    logging.warning(
        "%s was expected, %s is there: microbatch %d instead of %d, accumulation %d, "
        "the same global batch of %d",
        config.hardware.tpu_type,
        found.name,
        size,
        training.microbatch_size,
        training.global_batch_size // found.num_replicas // size,
        training.global_batch_size,
    )
    training.microbatch_size = size


def _remat(config: Config, manifest: Manifest, found: Found, workdir: str) -> str:
    """Returns the policy that "auto" stands for."""
    if found.kind != "TPU":
        return REMAT_POLICIES[0]
    name = found.name if found.tpu_type else config.hardware.tpu_type
    plan = _load_plan(config, manifest, name, workdir)
    training = config.training
    size = training.microbatch_size
    accumulates = training.global_batch_size > size * found.num_replicas
    # The sums of accumulation need room: a plan without them does not hold for them.
    same = size == plan["microbatch_size"] and (
        not accumulates or plan["accumulation_steps"] > 1
    )
    if same and plan["fits"]:
        return plan["remat"]
    if size <= (plan["max_microbatch_size"] or 0):
        return REMAT_POLICIES[-1]
    raise UserError(
        f"The plan for {name} must say that the microbatch fits. Received: {size}"
        f"{', accumulated' if accumulates else ''}; and a plan for "
        f"{plan['microbatch_size']} x {plan['accumulation_steps']} accumulation steps "
        f"that says fits={plan['fits']}, at most {plan['max_microbatch_size']}. Plan "
        "this run's sizes, with `--find_max_microbatch`, or lower "
        "`training.microbatch_size`."
    )


def _load_plan(
    config: Config, manifest: Manifest, name: str, workdir: str
) -> dict[str, Any]:
    """Returns the plan for a TPU type; of this run, or raises UserError."""
    path = _plan_path(workdir, name)
    shape = model_configuration(config.model, manifest)
    key = plan_key(config, shape, manifest.sequence_length)
    plan: dict[str, Any] = {}
    try:
        plan = json.loads(files.read(path)) if files.exists(path) else {}
        planned = plan["planned_for"]
        different = [
            f"{field} {planned.get(field)}, not {value}"
            for field, value in key.items()
            if planned.get(field) != value
        ]
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        different = ["it is damaged" if files.exists(path) else "it is not there"]
    if not different:
        return plan
    raise UserError(
        f"A plan for {name or 'the TPU'} is needed in {path}: {', '.join(different)}. "
        f"Make it with `python -m trainer.plan --tpu_type={name or 'TYPE'} "
        f"--workdir={workdir} --find_max_microbatch` and the config and data of this "
        "run, where the extra `plan` is installed; or set `training.remat` and "
        "`training.microbatch_size`."
    )


def _plan_path(workdir: str, name: str) -> str:
    return files.join(workdir, f"plans/{name or 'unknown'}.json")


def _describe(tpu_type: tpu.TpuType) -> str:
    gib = tpu_type.facts.hbm_bytes / 2**30
    return f"{tpu_type.name} ({tpu_type.num_replicas} replicas of {gib:.2f} GiB)"
