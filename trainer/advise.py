"""Advises how to train on a dataset: `python -m trainer.advise --data_dir=…`.

Prints each setting with its reason and its source, and the command. With `--tpu_type`,
the checkpoint is one that fits, and the run's hours are those of its plan.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from absl import flags

from configs import cli, tpu

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the program's flags."""
    cli.define_path("data_dir", "folder of the dataset")
    flags.DEFINE_string("tpu_type", "", "such as v5e-8; empty: no plan is made")


def main() -> None:
    """Runs the program."""
    cli.check_folder("data_dir", FLAGS.data_dir)
    tpu_type = tpu.parse(FLAGS.tpu_type) if FLAGS.tpu_type else None

    from tfrecords import manifest as manifests

    manifest = manifests.load(FLAGS.data_dir)

    from trainer.planning import advice

    if tpu_type:
        config, lines, plan = advice.advise_for_tpu(manifest, tpu_type)
        cost = list(_cost(plan))
    else:
        config, lines = advice.advise(manifest, num_replicas=1)
        cost = []
    command = " ".join(
        [
            "python -m trainer.train",
            *advice.flags(config),
            f"--data_dir={FLAGS.data_dir} --workdir=RUN",
        ]
    )
    result = {
        "train_tokens": manifest.split("train").tokens,
        "advice": [dataclasses.asdict(line) for line in [*lines, *cost]],
        "command": command,
    }
    if FLAGS.json:
        cli.print_result(result, as_json=True)
        return
    rows = [("training tokens", result["train_tokens"])]
    rows += [(line.setting, line.value) for line in [*lines, *cost]]
    cli.print_result({}, as_json=False, rows=rows)
    print()
    for line in [*lines, *cost]:
        print(f"{line.setting}: {line.reason} ({line.source}).")
    print(f"\n{command}")


def _cost(plan: dict[str, Any]) -> Iterator[Any]:
    """Yields the lines about the TPU."""
    from trainer.planning.advice import Line
    from trainer.planning.variants import gib

    source = f"trainer.plan for a {plan['tpu_type']}"
    peak = gib(plan["peak_bytes"]) if plan["fits"] else "DOES NOT FIT"
    available = gib(plan["hbm_available_bytes"])
    yield Line("memory", peak, f"of {available} of a replica", source)
    steps, seconds = plan["num_steps"], plan["step_seconds_estimate"]
    if seconds:
        low, high = (steps * value / 3600 for value in seconds)
        value = f"{low:.2g} to {high:.2g} hours"
        reason = f"{steps:,} steps by the compiler's cycles, without evaluations"
    else:
        value = f"at least {plan['hours_lower_bound']:.2g} hours"
        reason = f"{steps:,} steps at the published peak: a bound"
    yield Line("time", value, reason, source)


def run() -> None:
    """Runs the program as a command."""
    cli.run(main, define_flags, uses_tensorflow=True)


if __name__ == "__main__":
    run()
