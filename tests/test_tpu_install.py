"""`make install-tpu`: an environment for TPUs, from an empty one, on this machine."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# In a process of its own, as a user would: what can be imported, and what is installed.
REPORT = """
import json
from importlib import metadata
import tensorflow as tf, tf_keras
from transformers import TFGPT2LMHeadModel
print(json.dumps({
    "devices": [device.device_type for device in tf.config.list_physical_devices()],
    "packages": [d.name.lower().replace("_", "-") for d in metadata.distributions()],
}))
"""


def copy_tree(target: pathlib.Path) -> None:
    """Copies the tree as a commit of all that is here would have it."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    command.append("--exclude=.venv*")
    files = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes((ROOT / name).read_bytes())


def environment() -> dict[str, str]:
    """This one, without what would lead to ROOT's modules or this process's libtpu."""
    others = ("PYTHONPATH", "TPU_LIBRARY_PATH")
    kept = {name: value for name, value in os.environ.items() if name not in others}
    return kept | {"TPU_SKIP_MDS_QUERY": "1"}


def run(*command: str, cwd: pathlib.Path, **more: str) -> str:
    found = subprocess.run(
        command, cwd=cwd, env=environment() | more, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.mark.slow
def test_an_environment_for_tpus_has_one_tensorflow_that_sees_the_tpu_system(tmp_path):
    probe = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "absl-py"]
    if subprocess.run(probe, cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("no package index can be reached from here")
    tree, venv = tmp_path / "tree", tmp_path / "venv"
    copy_tree(tree)
    where = [f"VENV={venv}", f"PYTHON={sys.executable}"]
    # As from a notebook that has imported another TensorFlow.
    another = {"TPU_LIBRARY_PATH": str(tmp_path / "another/libtpu.so")}
    printed = run("make", "install-tpu", *where, cwd=tree, **another)
    assert "device_type='TPU_SYSTEM'" in printed

    found = json.loads(run(str(venv / "bin/python"), "-c", REPORT, cwd=tree))
    assert "TPU_SYSTEM" in found["devices"]
    assert "tensorflow-tpu" in found["packages"]
    assert "tensorflow" not in found["packages"]

    program = ["doctor", "TPU=none", "CONFIG=configs/quickstart.py"]
    assert "replicas compute" in run("make", *program, *where, cwd=tree, **another)
    refused = subprocess.run(
        ["make", "plan", "TPU=v3-8", *where], cwd=tree, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "VENV=.venv-plan" in refused.stderr
