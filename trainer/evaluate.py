"""Evaluates a trained model: `python -m trainer.evaluate --workdir=… --data_dir=…`.

Every token of the split is scored once, with a context of `--context_length` tokens
that moves on by `--stride`, from float32 losses summed over all of them. Each result
states its protocol. Results of a run are kept in `WORKDIR/evaluations/`.
"""

import sys
from collections.abc import Iterable
from typing import Any

from absl import flags

from configs import cli
from configs.errors import UserError

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the program's flags."""
    cli.define_model()
    cli.define_hardware()
    cli.define_path("data_dir", "folder of the dataset")
    flags.DEFINE_string("split", "validation", "split to score")
    flags.DEFINE_list(
        "context_length",
        [],
        "tokens of a window, or several such lengths; default: the dataset's records",
    )
    flags.DEFINE_integer(
        "stride",
        0,
        "tokens that each window scores; 0: the context length, so none overlap",
        lower_bound=0,
    )
    flags.DEFINE_enum(
        "precision",
        "",
        ["", "float32", "bfloat16"],
        "of the matrix products; default: as trained, float32 of a --checkpoint",
    )
    flags.DEFINE_integer(
        "batch_size", 8, "windows that a device scores at once", lower_bound=1
    )


def main() -> None:
    """Runs the program."""
    cli.check_model(FLAGS.workdir, FLAGS.step, FLAGS.checkpoint)
    cli.check_hardware(FLAGS.tpu, FLAGS.num_virtual_devices)
    cli.check_folder("data_dir", FLAGS.data_dir, cli.tpu_name())
    context_lengths = _numbers("context_length", FLAGS.context_length)

    from tfrecords import manifest as manifests

    manifests.load(FLAGS.data_dir).split(FLAGS.split)  # a wrong name is known at once

    from trainer.checkpoints import pretrained
    from trainer.evaluation.evaluator import evaluate
    from trainer.run_dir import results as stored_results
    from trainer.runtime import preemption
    from trainer.runtime import strategy as strategies

    with preemption.translate_unavailable_errors():
        strategy = strategies.create(cli.tpu_name(), FLAGS.num_virtual_devices)
        with strategy.scope():
            trained = pretrained.load(FLAGS.workdir, FLAGS.step, FLAGS.checkpoint)
        results: Iterable[dict[str, Any]] = evaluate(
            trained,
            strategy,
            FLAGS.data_dir,
            split=FLAGS.split,
            context_lengths=context_lengths,
            stride=FLAGS.stride,
            precision=FLAGS.precision,
            batch_size=FLAGS.batch_size,
        )
        if FLAGS.json:
            all_results = list(results)
            several = len(all_results) > 1
            result = {"results": all_results} if several else all_results[0]
            cli.print_result(result, as_json=True)
            results = all_results
        for number, result in enumerate(results):
            if not FLAGS.json:
                print("\n" * (number > 0), end="")
                _print(result)
            # A result is printed first: the workdir may be on a read-only disk.
            sys.stdout.flush()
            if FLAGS.workdir:
                stored_results.save(FLAGS.workdir, result)


def _numbers(flag: str, values: list[str]) -> list[int]:
    try:
        return [int(value) for value in values]
    except ValueError as error:
        raise UserError(
            f"`--{flag}` must be numbers. Received: {','.join(values)}."
        ) from error


def _print(result: dict[str, Any]) -> None:
    rows = {**result, **result["protocol"]}
    studies = rows.pop("published")
    del rows["protocol"]
    if rows["step"] is None:
        del rows["step"]
    cli.print_result(rows, as_json=False)
    for study in studies:
        values = ", ".join(
            f"{name.replace('_', ' ')} {value:.2f}"
            for name, value in study["figures"].items()
        )
        print(f"published: {study['study']}: {values}")
        differences = "; ".join(study["differences"])
        print(f"  not comparable: {differences}" if differences else "  comparable")
    if not studies:
        print("published: none for this text and checkpoint name (a folder has none)")


def run() -> None:
    """Runs the program as a command."""
    cli.run(main, define_flags, uses_tensorflow=True)


if __name__ == "__main__":
    run()
