"""One page for a run, or for several: `python -m trainer.report --workdir=…`.

Reads what the runs' folders hold and writes one HTML file, which needs nothing else: no
script, no request. Needs no TensorFlow.
"""

import json
import os

from absl import flags

from configs import cli
from configs.errors import UserError
from tfrecords.storage import files
from trainer.reporting import runs as folders
from trainer.reporting.page import page

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("workdir", "", "folder of a run")
    flags.DEFINE_list("workdirs", [], "folders of several runs, to compare")
    flags.DEFINE_string("output", "", "HTML file to write")


def main() -> None:
    if bool(FLAGS.workdir) == bool(FLAGS.workdirs):
        given = "both" if FLAGS.workdir else "neither"
        raise UserError(f"Give either `--workdir` or `--workdirs`. Received: {given}.")
    output = FLAGS.output
    if not output or output.endswith("/") or os.path.isdir(output):
        raise UserError(
            "`--output` must be the HTML file to write, such as report.html. Received: "
            f"{output or 'nothing'}."
        )
    workdirs = FLAGS.workdirs or [FLAGS.workdir]
    runs = [
        folders.read(workdir, name)
        for workdir, name in zip(workdirs, folders.names(workdirs), strict=True)
    ]
    # Half of a surrogate pair can stand in JSON, but not in UTF-8.
    files.write(output, page(runs).encode(errors="replace"))
    if FLAGS.json:
        print(json.dumps({"output": output, "runs": [run.name for run in runs]}))
    else:
        print(f"report of {', '.join(run.name for run in runs)}: {output}")


def run() -> None:
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
