"""What a run does on a TPU, before there is one: `python -m trainer.plan --config=…`.

Lowers the very step that `train` runs, has the TPU's own compiler compile it for all
replicas of a board or pod, and reports what that says. Needs no TPU.
"""

import json
from typing import Any

from absl import flags

from configs import cli, tpu
from configs.errors import UserError
from configs.validation import validate
from tfrecords import manifest as manifests
from tfrecords.storage import files
from trainer.planning import hardware, planner
from trainer.planning.planner import gib

FLAGS = flags.FLAGS


def _table(plan: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("TPU", f"{plan['tpu_type']}, {plan['num_replicas']} replicas"),
        ("fits", "yes" if plan["fits"] else f"NO: {plan['message']}"),
        ("a replica's HBM", gib(plan["hbm_available_bytes"])),
        ("  peak", gib(plan["peak_bytes"])),
        ("  weights, optimizer, batch", gib(plan["argument_bytes"])),
        ("  temporaries", gib(plan["temporary_bytes"])),
        ("  the program itself", gib(plan["generated_code_bytes"])),
        ("parameters", f"{plan['parameter_count']:,}"),
        ("optimizer state", f"{plan['optimizer_state_bytes'] / 1e6:,.1f} MB"),
        (
            "a step",
            f"{plan['global_batch_size']} x {plan['sequence_length']} tokens",
        ),
        (
            "  of a replica",
            f"microbatch {plan['microbatch_size']} x {plan['accumulation_steps']} "
            f"accumulation steps, remat {plan['remat']}",
        ),
        ("  FLOPs", f"{plan['flops_per_step']:.4g}"),
        ("  seconds, at least", f"{plan['step_seconds_lower_bound']:.3g} (a bound)"),
        (
            "tokens/s, at most",
            f"{plan['tokens_per_second_upper_bound']:,.0f} (a bound)",
        ),
    ]
    if plan["num_steps"]:
        rows.append(
            (
                f"hours of {plan['num_steps']:,} steps, at least",
                f"{plan['hours_lower_bound']:.3g} (a bound)",
            )
        )
    largest = plan["max_microbatch_size"]
    if largest is not None:
        rows.append(("largest microbatch", str(largest)))
        size = hardware.largest_share(
            plan["global_batch_size"], plan["num_replicas"], largest
        )
        if size:
            steps = plan["global_batch_size"] // plan["num_replicas"] // size
            rows.append(
                ("  for this global batch", f"{size} x {steps} accumulation steps")
            )
    return rows


def define_flags() -> None:
    cli.define_config()
    flags.DEFINE_string("tpu_type", "", "such as v3-8; empty: hardware.tpu_type")
    flags.DEFINE_bool("find_max_microbatch", False, "also find the largest that fits")
    flags.DEFINE_string("data_dir", "", "folder of the dataset, if it is there already")
    flags.DEFINE_string("workdir", "", "folder of the run that is to use the plan")


def main() -> None:
    config = FLAGS.config
    validate(config)
    name = FLAGS.tpu_type or config.hardware.tpu_type
    if not name:
        raise UserError("`--tpu_type` is missing: a TPU type, such as v3-8.")
    tpu_type = tpu.parse(name)
    path = files.join(FLAGS.data_dir, manifests.FILE_NAME)
    there = FLAGS.data_dir and files.exists(path)
    manifest = manifests.load(FLAGS.data_dir) if there else None
    plan = planner.make(config, tpu_type, manifest, FLAGS.find_max_microbatch)
    if FLAGS.json:
        print(json.dumps(plan))
    else:
        for label, value in _table(plan):
            print(f"{label:32}{value}")
        for warning in plan["warnings"]:
            print(f"warning: {warning}")
    if FLAGS.workdir and plan["planned_for"]:
        hardware.save_plan(FLAGS.workdir, plan)
    if not (plan["fits"] or plan["max_microbatch_size"]):
        raise UserError(
            f"This step does not fit a {tpu_type.name}. The compiler said: "
            f"{plan['message']}\nUse `--config.training.remat=block`, "
            "a smaller `--config.training.microbatch_size` (`--find_max_microbatch` "
            "looks for it), or a larger TPU."
        )


def run() -> None:
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
