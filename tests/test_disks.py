"""Disks that are read-only or full: every program ends with one message.

The disks are real: small ones in memory, which only root can mount.
"""

import contextlib
import pathlib
import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests import programs
from tests.conftest import SMALL


@pytest.fixture
def disk(tmp_path) -> Iterator[pathlib.Path]:
    """The root of a disk of 64 MB, which a test remounts."""
    root = tmp_path / "disk"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(root)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a disk")
    try:
        yield root
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)


def remount(disk: pathlib.Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


def fill(disk: pathlib.Path, spare_bytes: int = 0) -> None:
    """Takes the room on the disk, but for some."""
    size = shutil.disk_usage(disk).free - spare_bytes
    with open(disk / "filler", "ab") as stream:
        stream.write(bytes(size))


# Program -> its arguments, where {disk} cannot be written.
WRITERS = {
    "preprocess": (
        "data_pipeline.preprocess --config=configs/quickstart.py --num_workers=1 "
        "--config.data.vocab_size=300 --config.data.document=paragraph "
        "--input={small}/text.txt --output_dir={disk}/new"
    ),
    "train": "trainer.train --data_dir={small}/data --workdir={disk}/new",
    "export": "trainer.export --workdir={small}/run --output_dir={disk}/new",
    "saved_model": (
        "trainer.export --workdir={small}/run --output_dir={disk}/new "
        "--format=saved_model"
    ),
    "report": "trainer.report --workdir={small}/run --output={disk}/new.html",
    "evaluate": "trainer.evaluate --workdir={disk}/run --data_dir={disk}/data",
    "plan": (
        "trainer.plan --config=configs/quickstart.py --tpu_type=v5e-1 "
        "--config.model.n_layer=1 --config.model.n_embd=32 "
        "--data_dir={disk}/data --workdir={disk}/run"
    ),
}
READERS = {
    "generate": (
        "trainer.generate --workdir={disk}/run --prompt=The --stream --max_new_tokens=2"
    ),
    "inspect": "tfrecords.inspect --data_dir={disk}/data --verify",
    "report": "trainer.report --workdir={disk}/run --output={tmp}/new.html",
}


def run(
    command: str, disk: pathlib.Path, small: pathlib.Path
) -> subprocess.CompletedProcess:
    if command.startswith("trainer.plan"):
        pytest.importorskip("jax", reason="needs the extra `plan`")
    module, *arguments = command.format(disk=disk, small=small, tmp=disk.parent).split()
    if module == "trainer.train":
        arguments = [*SMALL, *arguments]
    return programs.run(module, *arguments)


def errors(process: subprocess.CompletedProcess) -> list[str]:
    """The messages of a program that has no stack trace."""
    assert "Traceback" not in process.stderr
    lines = process.stderr.splitlines()
    return [line for line in lines if line.startswith("error: ")]


# These compile for seconds before they write.
PROGRAMS = [
    pytest.param(
        name, marks=pytest.mark.slow if name in ("saved_model", "plan") else ()
    )
    for name in WRITERS
]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_read_only_disk_is_one_message(name, disk, small_run):
    for folder in ("data", "run"):
        shutil.copytree(small_run / folder, disk / folder)
    remount(disk, "ro")
    process = run(WRITERS[name], disk, small_run)
    assert process.returncode == 2, process.stderr
    (error,) = errors(process)
    assert f"error: {disk}/" in error
    assert error.endswith("cannot be used: Read-only file system. Name another.")
    assert ".partial" not in error
    if name in ("evaluate", "plan"):  # what was computed is not lost
        expected = {"evaluate": "bits per byte", "plan": "tokens/s"}[name]
        assert expected in process.stdout


@pytest.mark.parametrize("name", READERS)
def test_what_only_reads_needs_no_writable_disk(name, disk, small_run):
    for folder in ("data", "run"):
        shutil.copytree(small_run / folder, disk / folder)
    remount(disk, "ro")
    process = run(READERS[name], disk, small_run)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_full_disk_is_one_message(name, disk, small_run):
    for folder in ("data", "run"):
        shutil.copytree(small_run / folder, disk / folder)
    fill(disk)
    process = run(WRITERS[name], disk, small_run)
    assert_full(process, disk)
    if name == "evaluate":
        assert "bits per byte" in process.stdout


@pytest.mark.parametrize("name", ["export", PROGRAMS[3]])
def test_a_disk_that_fills_amid_an_export_is_one_message(name, disk, small_run):
    fill(disk, spare_bytes=100_000)
    process = run(WRITERS[name], disk, small_run)
    assert_full(process, disk)


def assert_full(process: subprocess.CompletedProcess, disk: pathlib.Path) -> None:
    assert process.returncode == 1, process.stderr
    (error,) = errors(process)
    assert error.startswith("error: The disk is full")
    assert str(disk) in error
    # No half of an export, a page or a dataset is left.
    assert not (disk / "new" / "config.json").exists()
    assert not (disk / "new.html").exists()
    assert not list(disk.glob(".export-*"))


def test_a_disk_that_fills_while_a_run_trains_is_one_message(disk, small_run):
    program = programs.Program(
        "trainer.train",
        *SMALL,
        "--config.training.num_steps=100000",
        f"--data_dir={small_run / 'data'}",
        f"--workdir={disk / 'new'}",
    )
    metrics = disk / "new" / "metrics.jsonl"
    while program.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.1)
    while program.poll() is None and shutil.disk_usage(disk).free:
        with contextlib.suppress(OSError):  # the run writes, too
            fill(disk)
    code, out, log = program.finish()
    assert code == 1, log
    (error,) = errors(subprocess.CompletedProcess([], code, out, log))
    assert "The disk is full" in error or "No space left" in error
    assert str(disk) in error
