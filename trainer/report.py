"""Writes one HTML page about one or several runs: `python -m trainer.report`.

Reads the runs' folders. The page needs nothing else: no script, no request. Needs no
TensorFlow.
"""

import os

from absl import flags

from configs import cli, paths
from configs.errors import UserError
from configs.progress import progress
from tfrecords.storage import files

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the program's flags."""
    cli.define_path("workdir", "folder of a run")
    paths.define_paths("workdirs", "folders of several runs, to compare")
    cli.define_path("output", "HTML file to write")


def main() -> None:
    """Runs the program."""
    if bool(FLAGS.workdir) == bool(FLAGS.workdirs):
        received = "both" if FLAGS.workdir else "neither"
        raise UserError(
            f"Give either `--workdir` or `--workdirs`. Received: {received}."
        )
    output = FLAGS.output
    if not output or output.endswith("/") or os.path.isdir(output):
        raise UserError(
            "`--output` must be the HTML file to write, such as report.html. Received: "
            f"{output or 'nothing'}."
        )

    from trainer.reporting import runs as folders
    from trainer.reporting.page import page

    workdirs = paths.split_paths(FLAGS.workdirs) or [FLAGS.workdir]
    names = folders.names(workdirs)
    runs = []
    with progress("report", len(names) + 1, "part", delay=1, leave=False) as bar:
        for workdir, name in zip(workdirs, names, strict=True):
            runs.append(folders.read(workdir, name))
            bar.update()
        text = page(runs)
        bar.update()
    # JSON can hold half of a surrogate pair, UTF-8 cannot.
    files.write(output, text.encode(errors="replace"))
    cli.print_result({"output": output, "runs": names}, as_json=FLAGS.json)


def run() -> None:
    """Runs the program as a command."""
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
