"""Trains and compares a grid of runs: `trainer.study --config=… --grid.FIELD=A,B,C …`.

Trains a run for each combination of the fields' values, one after the other, each in
its folder of WORKDIR. Scores the checkpoint with the lowest validation loss, and writes
WORKDIR/report.html. The same command continues a study that was stopped.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from configs import cli, grid, schema
from configs.errors import DataError, UserError
from configs.grid import Cell
from configs.schema import Config
from configs.validation import validate
from trainer.models import registry as architectures
from trainer.tasks import registry as tasks

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the program's flags."""
    cli.define_config()
    cli.define_hardware()
    grid.define_grid()
    cli.define_path(
        "data_dir",
        "folder of the dataset; {data.sequence_length} in it stands for the value of "
        "that field in the grid, and so on",
    )
    cli.define_path("workdir", "folder of the runs' folders and of the report")


def main() -> None:
    """Runs the program."""
    config: Any = FLAGS["config"]
    cells = grid.cells(
        config.config_filename, config.override_values, grid.typed_grid(), _check
    )
    cli.check_hardware(FLAGS.tpu, FLAGS.num_virtual_devices)
    cli.check_folder("data_dir", FLAGS.data_dir, cli.tpu_name())
    cli.check_folder("workdir", FLAGS.workdir, cli.tpu_name())
    data_dirs = [_data_dir(cell) for cell in cells]
    if problems := "\n".join(_data_problems(cells, data_dirs)):
        raise UserError(problems)

    from tfrecords.storage import files
    from trainer.reporting import runs as folders
    from trainer.reporting import study
    from trainer.reporting.page import page

    scorings, runs = study.scorings(data_dirs), []
    for index, cell in enumerate(cells):
        place = f"Run {index + 1} of {len(cells)}, {cell.name}"
        folder, scoring = files.join(FLAGS.workdir, cell.name), scorings[index]
        workdir = f"--workdir={folder}"
        if study.is_done(folder, cell.config, scoring):
            _say(f"{place}: finished already.")
        else:
            _say(f"{place}: training.")
            data_dir = f"--data_dir={data_dirs[index]}"
            _run("trainer.train", *cell.flags, data_dir, workdir)
            _say(f"{place}: evaluation.")
            step = study.best_step(folders.read(folder, cell.name))
            how = (f"--data_dir={scoring.data_dir}", f"--step={step}")
            lengths = ",".join(map(str, scoring.context_lengths))
            _run("trainer.evaluate", workdir, *how, f"--context_length={lengths}")
        runs.append(folders.read(folder, cell.name))
    report = files.join(FLAGS.workdir, "report.html")
    files.write(report, page(runs).encode(errors="replace"))
    _print(*study.rank(runs, scorings), report)


def _check(config: Config) -> None:
    validate(config)
    architectures.check(config.model.architecture)
    tasks.check(config.training.task)


def _data_dir(cell: Cell) -> str:
    """Returns a cell's dataset: `--data_dir` with the cell's values in it."""
    path = str(FLAGS.data_dir)
    for field, value in cell.values.items():
        path = path.replace(f"{{{field}}}", str(value))
    return path


def _data_problems(cells: Sequence[Cell], data_dirs: Sequence[str]) -> Iterator[str]:
    """Yields what is wrong with the datasets, and the fields that they need."""
    from tfrecords import manifest as manifests

    fields = [*filter(schema.is_of_dataset, cells[0].values)]
    absent = [f"{{{f}}}" for f in fields if f"{{{f}}}" not in FLAGS.data_dir]
    if absent:
        yield (
            f"`--data_dir` must hold {' and '.join(absent)}, since each value needs a "
            f"dataset of its own. Received: {FLAGS.data_dir}. Use such as "
            f"{FLAGS.data_dir}-{'-'.join(absent)}."
        )
        return
    for data_dir, cell in dict(zip(data_dirs, cells, strict=True)).items():
        values = {field: cell.values[field] for field in fields}
        how = " ".join(f"--config.{field}={value}" for field, value in values.items())
        try:
            stored = manifests.load(data_dir).config
        except DataError as error:
            yield f"{error} It needs {how}." if how else str(error)
            continue
        for field, value in values.items():
            received = stored.get(field.removeprefix("data."), value)
            if not isinstance(received, list) and received != value:  # a list: inputs
                yield (
                    f"{data_dir} must be preprocessed with {how}. Received: {received}."
                )


def _run(program: str, *arguments: str) -> None:
    """Runs a program to its end; ends this one where that fails.

    Its log is shown; its result is in the run's folder. SIGTERM is passed on to it, so
    that a training saves.
    """
    hardware = (
        f"--tpu={FLAGS.tpu}",
        f"--num_virtual_devices={FLAGS.num_virtual_devices}",
    )
    command = [sys.executable, "-m", program, *arguments, *hardware]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    code = child.wait()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if code:
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}; see above"
        _say(
            f"The study has stopped: {program} ended {how}. The same command continues "
            "it, and keeps the finished runs."
        )
        sys.exit(code if code > 0 else 128 - code)


def _print(tables: list[dict[str, Any]], differing: list[str], report: str) -> None:
    if FLAGS.json:
        result = {"rankings": tables, "differing": differing, "report": report}
        cli.print_result(result, as_json=True)
        return
    for table in tables:
        if differing:
            values = (f"{name} {table['protocol'].get(name)}" for name in differing)
            print(", ".join(values).replace("_", " ") + ":")
        head = [name.replace("_", " ") for name in table["runs"][0]]
        rows = [head, *(list(row.values()) for row in table["runs"])]
        cli.print_result({}, as_json=False, rows=rows)
        print(f"best: {table['best']}\n" if table["best"] else "")
    if differing:
        names = ", ".join(differing).replace("_", " ")
        print(f"Losses of different {names} do not compare: each has its own table.")
    print(f"report: {report}")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def run() -> None:
    """Runs the program as a command."""
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
