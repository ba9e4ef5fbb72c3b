"""Turns text into a dataset: `python -m data_pipeline.preprocess --config=… …`.

The stages are the folders of this package: sources -> documents -> tokens -> records.
`pipeline` runs them one after the other.
"""

import os
import sys
from typing import TYPE_CHECKING

from absl import flags

from configs import cli, paths
from configs.errors import UserError
from configs.validation import validate

if TYPE_CHECKING:
    from tfrecords.manifest import Manifest

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of the program."""
    cli.define_config()
    cli.define_path("output_dir", "folder of the dataset, or gs://…")
    for name in ("input", "validation_input"):
        paths.define_paths(
            name, f"stands for --config.data.{name}; can be repeated, or have commas"
        )
    flags.DEFINE_integer(
        "num_workers", 0, "number of processes; 0: one for each CPU", lower_bound=0
    )
    flags.DEFINE_enum(
        "runner",
        "local",
        ["local", "beam"],
        "processes of this machine, or Apache Beam: options after --runner=beam that "
        "this program does not have are Beam's",
    )
    flags.DEFINE_bool("overwrite", False, "replace another dataset in the folder")


def main() -> None:
    """Checks the flags, makes the dataset and prints its size."""
    config = FLAGS.config
    config.data.input = "\n".join(FLAGS.input) or config.data.input
    config.data.validation_input = (
        "\n".join(FLAGS.validation_input) or config.data.validation_input
    )
    validate(config)
    output_dir = FLAGS.output_dir.rstrip("/")
    if not output_dir:
        raise UserError(
            "`--output_dir` must name a folder. Received: nothing. Give a local one, "
            "or gs://BUCKET/FOLDER."
        )
    # transformers, needed for a tokenizer only, then starts in half the time.
    os.environ.update(USE_TF="0", USE_TORCH="0", TRANSFORMERS_NO_ADVISORY_WARNINGS="1")
    # Imported after the checks: what they import takes a second.
    from data_pipeline import dataset_folder, pipeline, runners
    from data_pipeline.job import plan_job

    job = plan_job(config)
    result = None if FLAGS.overwrite else dataset_folder.finished(job, output_dir)
    if result:
        print(f"{output_dir} holds this dataset already.", file=sys.stderr)
    else:
        if FLAGS.runner == "beam":
            new_runner = runners.beam(cli.passed_on())
        else:
            new_runner = runners.local(FLAGS.num_workers or os.cpu_count() or 1)
        with new_runner as runner:
            result = pipeline.preprocess(
                job, output_dir, runner, overwrite=FLAGS.overwrite
            )
    _print_result(result, as_json=FLAGS.json)


def _print_result(result: "Manifest", *, as_json: bool) -> None:
    if as_json:
        from tfrecords import manifest

        print(manifest.to_json(result), end="")
        return
    columns = "{:12}{:>12}{:>14}{:>14}{:>12}{:>8}"
    print(columns.format("split", "documents", "words", "tokens", "records", "shards"))
    for name, split in result.splits.items():
        numbers = [split.documents, split.words, split.tokens, split.num_records]
        cells = [f"{number:,}" for number in (*numbers, len(split.shards))]
        print(columns.format(name, *cells))
    for name, split in result.splits.items():
        changes = {f"skipped, {k}": v for k, v in split.skipped.items()}
        changes |= {f"repaired, {k}": v for k, v in split.repaired.items()}
        changes |= {
            f"kept with {k}": v
            for k, v in split.kept.items()
            # No documents; the pipeline warns of them.
            if k not in ("special_token_as_text", "unknown_token")
        }
        changes |= {"truncated": split.truncated_documents}
        for change, count in changes.items():
            if count:
                print(f"{name}: {count:,} documents {change.replace('_', ' ')}")
    print(f"fingerprint {result.fingerprint[:16]}")


def run() -> None:
    """Runs the program; the entry point `gpt2-tpu-preprocess`."""
    cli.run(main, define_flags, passes_on="--runner=beam")


if __name__ == "__main__":
    run()
