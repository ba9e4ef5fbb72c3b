"""`make install-tpu`: sets up an environment for TPUs from nothing, on this machine."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.test_dockerfile import steps as dockerfile_steps

# Prints the devices and the installed packages, in a process of its own.
REPORT = """
import json
from importlib import metadata
import tensorflow as tf, tf_keras
from transformers import TFGPT2LMHeadModel
print(json.dumps({
    "devices": [device.device_type for device in tf.config.list_physical_devices()],
    "packages": [d.name.lower().replace("_", "-") for d in metadata.distributions()],
    "libtpu": metadata.version("libtpu"),
}))
"""


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


def environment() -> dict[str, str]:
    """Returns this environment, without ROOT's modules and this process's libtpu."""
    removed = ("PYTHONPATH", "TPU_LIBRARY_PATH")
    kept = {name: value for name, value in os.environ.items() if name not in removed}
    return kept | {"TPU_SKIP_MDS_QUERY": "1"}


def run(*command: str, cwd: pathlib.Path, **variables: str) -> str:
    """Runs a command that must succeed; returns its standard output."""
    process = subprocess.run(
        command, cwd=cwd, env=environment() | variables, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.mark.slow
def test_an_environment_for_tpus_has_one_tensorflow_that_sees_the_tpu_system(tmp_path):
    probe = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "absl-py"]
    if subprocess.run(probe, cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("no package index can be reached from here")
    tree, venv = tmp_path / "tree", tmp_path / "venv"
    copy_tree(tree)
    variables = [f"VENV={venv}", f"PYTHON={sys.executable}"]
    # A notebook that has imported another TensorFlow exports its libtpu.
    notebook = {"TPU_LIBRARY_PATH": str(tmp_path / "another/libtpu.so")}
    settings = {"VENV": str(venv), "PYTHON": sys.executable, **notebook}
    (step,) = dockerfile_steps("tpu")
    printed = run("sh", "-c", step, cwd=tree, **settings)
    assert "device_type='TPU_SYSTEM'" in printed
    assert "`make doctor TPU=local` asks it" in printed

    report = json.loads(run(str(venv / "bin/python"), "-c", REPORT, cwd=tree))
    assert "TPU_SYSTEM" in report["devices"]
    assert "tensorflow-tpu" in report["packages"]
    assert "tensorflow" not in report["packages"]
    assert report["libtpu"] == "0.0.14"

    program = ["doctor", "TPU=none", "CONFIG=configs/quickstart.py"]
    assert "replicas compute" in run("make", *program, *variables, cwd=tree, **notebook)
    plan = ["make", "plan", "TPU=v3-8", *variables]
    refused = subprocess.run(plan, cwd=tree, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "VENV=.venv-plan" in refused.stderr
