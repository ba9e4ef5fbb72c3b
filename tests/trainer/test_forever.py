"""The restart loop, around real programs that are really killed."""

import os
import signal
import subprocess
import sys

import pytest

from tests import programs
from tests.conftest import ROOT
from tests.trainer.runtime.test_preemption import assert_same, command, wait_for_step
from trainer import forever

# The loop waits as long as ever, but for less.
PROGRAM = """
import sys
from trainer import forever
forever._WAIT_SECONDS = 0.1
sys.exit(forever.keep_training(sys.argv[1:]))
"""


def loop(dataset, workdir, **options):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *command(dataset, workdir, **options)],
        cwd=ROOT,
        env=os.environ | {"USE_TORCH": "0"},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Returns its exit code and its log."""
    _, log = process.communicate(timeout=300)
    return process.returncode, log


def child(process):
    found = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    )
    return int(found.stdout.split()[0])


@pytest.mark.slow
def test_a_killed_and_a_preempted_training_go_on_to_the_end(dataset, tmp_path):
    options = {"num_steps": 100, "checkpoint_interval": 1}
    process = loop(dataset, tmp_path / "run", **options)
    wait_for_step(tmp_path / "run", 3, process)
    os.kill(child(process), signal.SIGKILL)
    wait_for_step(tmp_path / "run", 30, process)
    os.kill(child(process), signal.SIGTERM)
    code, log = finish(process)
    assert code == 0, log
    assert "The training was killed by signal 9" in log
    assert "The training was stopped, with step" in log
    found = programs.run(
        "trainer.train", *command(dataset, tmp_path / "whole", **options)
    )
    assert found.returncode == 0, found.stderr
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_sigterm_ends_the_loop_when_the_training_has_saved(dataset, tmp_path):
    process = loop(dataset, tmp_path, num_steps=100_000, checkpoint_interval=0)
    wait_for_step(tmp_path, 3, process)
    process.send_signal(signal.SIGTERM)
    code, log = finish(process)
    assert code == 75, log
    assert "Stopped by SIGTERM; all steps are saved" in log
    assert "Again in" not in log
    assert list((tmp_path / "checkpoints").iterdir())


def test_a_mistake_is_not_repeated(dataset, tmp_path):
    code, log = finish(loop(dataset, tmp_path, microbatch_size=3))
    assert code == 2
    assert f"\n{log}".count("\nerror: ") == 1


def test_the_newest_whole_checkpoint_counts(tmp_path):
    for name in ("step-00000010", "step-00000020.damaged", "step-00000030"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        if name != "step-00000030":  # torn
            (tmp_path / "checkpoints" / name / "checkpoint.json").touch()
    assert forever._saved_step(f"{tmp_path}/") == 10
    assert forever._saved_step(f"{tmp_path}/absent") == 0


def test_starts_that_save_nothing_end(tmp_path):
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    program = f"""
import subprocess, sys
from trainer import forever
forever._WAIT_SECONDS = 0
real = subprocess.Popen
forever.subprocess.Popen = lambda _: real([sys.executable, "-c", {killed!r}])
sys.exit(forever.keep_training(["--workdir={tmp_path}"]))
"""
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 1
    assert found.stderr.count("was killed by signal 9, with step 0 saved") == 19
    assert "The last 20 starts have saved nothing" in found.stderr
