"""Writes an export whole: into a temporary folder first, then to its place."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from configs.errors import UserError, disk_errno
from configs.progress import progress
from tfrecords import checksums
from tfrecords.storage import files

MODEL_CARD = "README.md"
# The files by which readers recognize a model: written last.
_MARKS = ("config.json", "saved_model.pb", "adapter_config.json")


def check_new(output_dir: str) -> None:
    """Raises UserError unless the output is a new or empty folder."""
    if not output_dir:
        raise UserError("`--output_dir` is missing: a folder, or gs://….")
    if files.is_remote(output_dir):
        is_new = not files.expand(output_dir)
    else:
        is_new = not os.path.exists(output_dir) or (
            os.path.isdir(output_dir) and not os.listdir(output_dir)
        )
    if not is_new:
        raise UserError(
            f"`--output_dir` must be new or empty. Received: {output_dir}. Name "
            "another, or remove it."
        )


@contextlib.contextmanager
def temporary(output_dir: str) -> Iterator[pathlib.Path]:
    """Yields an empty local folder, on the disk of a local output.

    Raises:
      OSError: the disk is full or cannot be written; whatever library wrote to it.
    """
    beside = None
    try:
        if not files.is_remote(output_dir):
            beside = pathlib.Path(output_dir).absolute().parent
            beside.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=beside) as parent:
            folder = pathlib.Path(parent) / "model"
            folder.mkdir()
            yield folder
    except Exception as error:  # each library reports a full disk by its own class
        number = disk_errno(error)
        if number is None or hasattr(error, "exit_code"):
            raise
        where = output_dir if beside else tempfile.gettempdir()
        raise OSError(number, os.strerror(number), where) from error


def place(folder: pathlib.Path, output_dir: str) -> pathlib.Path:
    """Makes a complete folder the output; returns where it is on this machine.

    A list of checksums is added. The model card is not in it: people edit it.
    """
    names = [name for name in file_names(folder) if name != MODEL_CARD]
    checksums.write_list(folder, names)
    if not files.is_remote(output_dir) and not os.path.exists(output_dir):
        return folder.replace(output_dir.rstrip("/"))
    names = sorted(
        file_names(folder), key=lambda name: name.rpartition("/")[2] in _MARKS
    )
    sizes = {name: (folder / name).stat().st_size for name in names}
    total = sum(sizes.values())
    with progress("write", total, "B", unit_scale=True, delay=1, leave=False) as bar:
        for name, size in sizes.items():
            with files.writing(files.join(output_dir, name)) as staged:
                shutil.copyfile(folder / name, staged)
            bar.update(size)
    return folder


def file_names(folder: pathlib.Path) -> list[str]:
    """Returns the paths of all files below a folder, relative to it and sorted."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path.relative_to(folder).as_posix() for path in paths]
