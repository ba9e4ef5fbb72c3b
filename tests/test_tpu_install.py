"""`make install-tpu`: sets up an environment for TPUs from nothing, on this machine."""

import json
import subprocess
import sys

import pytest

from tests.fake_tpu.environment import NOTEBOOK, run, variables

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
# Loads libtpu, says so, and ends with its standard input.
USER = """
import sys
import tensorflow as tf
print(len(tf.config.list_physical_devices()), flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_an_environment_for_tpus_has_one_tensorflow_that_sees_the_tpu_system(
    tpu_environment,
):
    tree, venv = tpu_environment.tree, tpu_environment.venv
    assert "device_type='TPU_SYSTEM'" in tpu_environment.printed

    # Other tests may use the fake TPU now.
    shared = {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    report = json.loads(run(str(venv / "bin/python"), "-c", REPORT, cwd=tree, **shared))
    assert "TPU_SYSTEM" in report["devices"]
    assert "tensorflow-tpu" in report["packages"]
    assert "tensorflow" not in report["packages"]
    assert report["libtpu"] == "0.0.14"

    variables = [f"VENV={venv}", f"PYTHON={sys.executable}"]
    program = ["doctor", "TPU=none", "CONFIG=configs/quickstart.py"]
    assert "replicas compute" in run("make", *program, *variables, cwd=tree, **NOTEBOOK)
    plan = ["make", "plan", "TPU=v3-8", *variables]
    refused = subprocess.run(plan, cwd=tree, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "VENV=.venv-plan" in refused.stderr


@pytest.mark.slow
def test_a_tpu_in_use_is_named_and_nothing_is_installed(tpu_environment):
    tree, venv = tpu_environment.tree, tpu_environment.venv
    user = subprocess.Popen(
        [venv / "bin/python", "-c", USER],
        env=variables(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with user:
        user.stdout.readline()
        options = [f"VENV={venv}", f"PYTHON={sys.executable}"]
        module = next(venv.glob("lib/*/site-packages/tensorflow/__init__.py"))
        before = module.stat().st_mtime_ns
        doctor = subprocess.run(
            ["make", "doctor", "TPU=local", "CONFIG=configs/quickstart.py", *options],
            cwd=tree,
            env=variables() | {"TPU_DEVICE_FILES": str(venv)},
            capture_output=True,
            text=True,
        )
        assert doctor.returncode == 2
        assert "already in use by process" in doctor.stderr
        assert "Trying the next" not in doctor.stderr
        assert "TPU_SYSTEM" in run("make", "install-tpu", *options, cwd=tree)
        assert module.stat().st_mtime_ns == before
        user.stdin.close()
