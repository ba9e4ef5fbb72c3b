"""Plans a run on a TPU without one: `python -m trainer.plan --config=… --tpu_type=…`.

Lowers the same step that `train` runs, compiles it with the TPU's own compiler for all
replicas of a board or pod, and reports memory and bounds on the speed.
"""

from collections.abc import Iterator
from typing import Any

from absl import flags

from configs import cli, tpu
from configs.errors import UserError
from configs.validation import validate
from trainer.models import registry as architectures
from trainer.tasks import registry as tasks

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the program's flags."""
    cli.define_config()
    flags.DEFINE_string("tpu_type", "", "such as v3-8; empty: hardware.tpu_type")
    flags.DEFINE_bool("find_max_microbatch", False, "also find the largest that fits")
    flags.DEFINE_bool("tune", False, "choose the fastest microbatch and remat that fit")
    cli.define_path("data_dir", "folder of the dataset, if it exists already")
    cli.define_path("workdir", "folder of the run that is to use the plan")


def main() -> None:
    """Runs the program."""
    config = FLAGS.config
    validate(config)
    architectures.check(config.model.architecture)
    tasks.check(config.training.task)
    name = FLAGS.tpu_type or config.hardware.tpu_type
    if not name:
        raise UserError("`--tpu_type` is missing: a TPU type, such as v3-8.")
    tpu_type = tpu.parse(name)

    from tfrecords import manifest as manifests
    from tfrecords.storage import files

    manifest = None
    if FLAGS.data_dir:
        path = files.join(FLAGS.data_dir, manifests.FILE_NAME)
        manifest = manifests.load(FLAGS.data_dir) if files.exists(path) else None

    from trainer.planning import planner
    from trainer.reporting import curves
    from trainer.run_dir import plans

    plan = planner.make(
        config,
        tpu_type,
        manifest,
        find_max=FLAGS.find_max_microbatch,
        tune=FLAGS.tune,
    )
    rows = [*_rows(plan), *(("warning", text) for text in plan["warnings"])]
    cli.print_result(plan, as_json=FLAGS.json, rows=rows)
    if FLAGS.workdir and plan["planned_for"]:
        plans.save(FLAGS.workdir, plan)
    if FLAGS.workdir and FLAGS.tune:
        plans.save_picture(FLAGS.workdir, plan, curves.frontier(plan).svg_file())
    if not (plan["fits"] or plan["max_microbatch_size"]):
        raise UserError(
            f"This step does not fit a {tpu_type.name}. The compiler reports: "
            f"{plan['message']}\nUse `--config.training.remat=block`, "
            "a smaller `--config.training.microbatch_size` (`--find_max_microbatch` "
            "finds the largest), or a larger TPU."
        )


def _rows(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the lines of the table for people."""
    from trainer.planning.hardware import largest_dividing_microbatch
    from trainer.planning.variants import gib

    yield "TPU", f"{plan['tpu_type']}, {plan['num_replicas']} replicas"
    yield "fits", "yes" if plan["fits"] else f"NO: {plan['message']}"
    if layers := plan["extrapolated_from"]:
        yield "  extrapolated", f"from models of {layers[0]} and {layers[1]} layers"
    yield "a replica's HBM", gib(plan["hbm_available_bytes"])
    yield "  peak", gib(plan["peak_bytes"])
    yield "  weights, optimizer, batch", gib(plan["argument_bytes"])
    yield "  temporaries", gib(plan["temporary_bytes"])
    yield "  the program itself", gib(plan["generated_code_bytes"])
    yield "parameters", f"{plan['parameter_count']:,}"
    yield "  trained", f"{plan['trained_parameter_count']:,}"
    yield "optimizer state", f"{plan['optimizer_state_bytes'] / 1e6:,.1f} MB"
    yield "a step", f"{plan['global_batch_size']} x {plan['sequence_length']} tokens"
    yield (
        "  of a replica",
        f"microbatch {plan['microbatch_size']} x {plan['accumulation_steps']} "
        f"accumulation steps, remat {plan['remat']}",
    )
    yield "  FLOPs", f"{plan['flops_per_step']:.4g}"
    yield "  seconds, at least", f"{plan['step_seconds_lower_bound']:.3g} (a bound)"
    tokens_per_second = f"{plan['tokens_per_second_upper_bound']:,.0f} (a bound)"
    yield "tokens/s, at most", tokens_per_second
    yield from _estimate_rows(plan)
    yield from _tuned_rows(plan)
    if plan["num_steps"]:
        hours = f"{plan['hours_lower_bound']:.3g} (a bound)"
        yield f"hours of {plan['num_steps']:,} steps, at least", hours
    largest = plan["max_microbatch_size"]
    if largest is None:
        return
    yield "largest microbatch", str(largest)
    replicas = plan["num_replicas"]
    size = largest_dividing_microbatch(plan["global_batch_size"], replicas, largest)
    if size:
        num_steps = plan["global_batch_size"] // replicas // size
        yield "  for this global batch", f"{size} x {num_steps} accumulation steps"


def _estimate_rows(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields how fast the compiler's own cycles say that the step is."""
    if plan["step_seconds_estimate"] is None:
        if plan["fits"]:
            yield "tokens/s, estimated", "not available: the program cannot be read"
        return
    low, high = plan["tokens_per_second_estimate"]
    basis = f"by the compiler's cycles; {plan['estimate_basis']}"
    yield "tokens/s, estimated", f"{low:,.0f} to {high:,.0f} ({basis})"
    for part, share in plan["step_shares"].items():
        yield f"  {part}", f"{share:.0%} of a step"


def _tuned_rows(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields what `--tune` chose, and what came next."""
    from trainer.planning.variants import gib

    if "tuned" not in plan:
        return
    labels = ("fastest that fits", "  next")
    for index, candidate in enumerate(plan["candidates"]):
        low, high = candidate["step_seconds_estimate"]
        yield (
            labels[index > 0],
            f"microbatch {candidate['microbatch_size']} x "
            f"{candidate['accumulation_steps']}, remat {candidate['remat']}: "
            f"{low:.3g} to {high:.3g} s a step, {gib(candidate['peak_bytes'])}",
        )
    yield "  tuned in", f"{plan['tuning_seconds']:,.0f} s"


def run() -> None:
    """Runs the program as a command."""
    cli.run(main, define_flags, uses_tensorflow=True)


if __name__ == "__main__":
    run()
