"""The environment of `make install-tpu`, set up from nothing on this machine."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
# A notebook that has imported another TensorFlow exports its libtpu.
NOTEBOOK = {"TPU_LIBRARY_PATH": "/another/libtpu.so"}


@dataclasses.dataclass(frozen=True)
class TpuEnvironment:
    """What `make install-tpu` has made.

    Attributes:
      tree: the copy of this project that it was run in.
      venv: the environment.
      printed: by the command.
    """

    tree: pathlib.Path
    venv: pathlib.Path
    printed: str


def variables() -> dict[str, str]:
    """Returns this environment, without ROOT's modules and this process's libtpu."""
    removed = ("PYTHONPATH", "TPU_LIBRARY_PATH")
    kept = {name: value for name, value in os.environ.items() if name not in removed}
    return kept | {"TPU_SKIP_MDS_QUERY": "1"}


def run(*command: str, cwd: pathlib.Path, **environment: str) -> str:
    """Runs a command that must succeed; returns its standard output."""
    process = subprocess.run(
        command, cwd=cwd, env=variables() | environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def install(folder: pathlib.Path) -> TpuEnvironment:
    """Runs `make install-tpu` in a copy of the project, unless that has been done."""
    tree, venv, record = folder / "tree", folder / "venv", folder / "printed"
    if not record.exists():
        probe = ("pip", "download", "--no-deps", "--quiet", "absl-py", "-d", folder)
        if subprocess.run([sys.executable, "-m", *probe]).returncode:
            pytest.skip("no package index can be reached from here")
        copy_tree(tree)
        arguments = (f"VENV={venv}", f"PYTHON={sys.executable}")
        settings = NOTEBOOK | {"PIP_NO_COMPILE": "1"}  # of modules that nothing imports
        printed = run("make", "install-tpu", *arguments, cwd=tree, **settings)
        record.write_text(printed)
    return TpuEnvironment(tree, venv, record.read_text())


def copy_tree(target: pathlib.Path) -> None:
    """Copies the files that a commit of the whole tree would have."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    command.append("--exclude=.venv*")
    files = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes((ROOT / name).read_bytes())
