"""Evaluates a trained model: `python -m trainer.evaluate --workdir=… --data_dir=…`.

Every token of the split is scored once, with a context of `--context_length` tokens
that moves on by `--stride`, from float32 losses summed over all of them. Each result
states its protocol. Results of a run are kept in `WORKDIR/evaluations/`.

`--benchmark=…` measures the model by a standard benchmark instead of a dataset.
"""

import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any

from absl import flags

from configs import cli
from configs.errors import UserError
from trainer.evaluation.benchmarks import catalog

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the program's flags."""
    cli.define_model()
    cli.define_hardware()
    cli.define_path("data_dir", "folder of the dataset; not read with --benchmark")
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
    flags.DEFINE_enum(
        "benchmark", "", ["", *catalog.BENCHMARKS], "measure by a standard benchmark"
    )
    cli.define_path(
        "benchmark_file", "the benchmark's file, as published; default: from TFDS"
    )
    flags.DEFINE_integer(
        "batch_size",
        8,
        "windows, or records of a benchmark, that a device scores at once",
        lower_bound=1,
    )


def main() -> None:
    """Runs the program."""
    cli.check_model(FLAGS.workdir, FLAGS.step, FLAGS.checkpoint)
    cli.check_hardware(FLAGS.tpu, FLAGS.num_virtual_devices)
    make_results = _of_benchmark() if FLAGS.benchmark else _of_dataset()

    from trainer.checkpoints import pretrained
    from trainer.run_dir import results as stored_results
    from trainer.runtime import preemption
    from trainer.runtime import strategy as strategies

    with preemption.translate_unavailable_errors():
        strategy = strategies.create(cli.tpu_name(), FLAGS.num_virtual_devices)
        with strategy.scope():
            trained = pretrained.load(FLAGS.workdir, FLAGS.step, FLAGS.checkpoint)
        results = make_results(trained, strategy)
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


def _of_dataset() -> Callable[..., Iterable[dict[str, Any]]]:
    """Returns what scores a split; a mistake in a flag is known at once."""
    cli.check_folder("data_dir", FLAGS.data_dir, cli.tpu_name())
    context_lengths = _numbers("context_length", FLAGS.context_length)
    if FLAGS.benchmark_file:
        names = ", ".join(catalog.BENCHMARKS)
        raise UserError(
            f"`--benchmark_file` belongs to `--benchmark`, one of {names}. Received: "
            f"{FLAGS.benchmark_file} alone. Name the benchmark."
        )

    from tfrecords import manifest as manifests

    manifests.load(FLAGS.data_dir).split(FLAGS.split)

    from trainer.evaluation.evaluator import evaluate

    return functools.partial(
        evaluate,
        data_dir=FLAGS.data_dir,
        split=FLAGS.split,
        context_lengths=context_lengths,
        stride=FLAGS.stride,
        precision=FLAGS.precision,
        batch_size=FLAGS.batch_size,
    )


def _of_benchmark() -> Callable[..., Iterable[dict[str, Any]]]:
    """Returns what measures by a benchmark; a mistake in its file is known at once."""
    for flag in ("split", "stride", "context_length"):
        if FLAGS[flag].present:
            raise UserError(
                f"`--benchmark` excludes `--{flag}`: the benchmark says how it is "
                f"scored. Received: {FLAGS[flag].value}. Leave either out."
            )

    examples = catalog.load(FLAGS.benchmark, FLAGS.benchmark_file)

    from trainer.evaluation.benchmarks import evaluator

    def measure(trained: Any, strategy: Any) -> Iterable[dict[str, Any]]:
        yield evaluator.evaluate(
            trained,
            strategy,
            FLAGS.benchmark,
            examples,
            source=FLAGS.benchmark_file,
            precision=FLAGS.precision,
            batch_size=FLAGS.batch_size,
        )

    return measure


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
    labels, confusion = rows.pop("labels", []), rows.pop("confusion", [])
    if rows["step"] is None:
        del rows["step"]
    cli.print_result(rows, as_json=False)
    if labels:
        print(f"\nbag of words: {_verdict(result)}\n")
        matrix = [[f"is {name}", *r] for name, r in zip(labels, confusion, strict=True)]
        head = ["", *(f"predicted {label}" for label in labels)]
        cli.print_result({}, as_json=False, rows=[head, *matrix])
        return
    for study in studies:
        values = ", ".join(
            f"{name.replace('_', ' ')} {value:.4g}"
            for name, value in study["figures"].items()
        )
        print(f"published: {study['study']}: {values}")
        differences = "; ".join(study["differences"])
        print(f"  not comparable: {differences}" if differences else "  comparable")
    if not studies:
        print("published: none for this text and checkpoint name (a folder has none)")


def _verdict(result: dict[str, Any]) -> str:
    accuracy, baseline = result["accuracy"], result["bag_of_words_accuracy"]
    if accuracy > baseline:
        return f"beaten, by {accuracy - baseline:.1%} of the texts"
    return (
        f"not beaten: it labels {baseline:.1%} right, and this model {accuracy:.1%}. "
        "Use the bag of words, more texts, or a pretrained `model.initial_checkpoint`"
    )


def run() -> None:
    """Runs the program as a command."""
    cli.run(main, define_flags, uses_tensorflow=True)


if __name__ == "__main__":
    run()
