"""A real study that is stopped and continued, and the errors of its runs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests import programs
from tests.conftest import ROOT, SMALL
from trainer.run_dir import metrics


def command(small_run, folder, *grid):
    return [
        *SMALL,
        *grid,
        f"--data_dir={small_run / 'data'}",
        f"--workdir={folder}",
        "--tpu=none",
        "--json",
    ]


def stderr_lines(text):
    return [line for line in text.split("\n") if line.startswith("Run ")]


@pytest.mark.slow
def test_a_killed_study_continues_and_ranks_its_runs(small_run, tmp_path):
    grid = ("--grid.optimizer.learning_rate=1e-9,1e-2", "--config.training.num_steps=4")
    arguments = command(small_run, tmp_path / "study", *grid)
    first, second = (
        tmp_path / "study" / f"learning_rate={rate}" for rate in ("1e-09", "0.01")
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer.study", *arguments],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not (second / "run.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = metrics.load(str(first))
    finished = programs.run("trainer.study", *arguments)
    assert finished.returncode == 0, finished.stderr
    assert stderr_lines(finished.stderr) == [
        "Run 1 of 2, learning_rate=1e-09: finished already.",
        "Run 2 of 2, learning_rate=0.01: training.",
        "Run 2 of 2, learning_rate=0.01: evaluation.",
    ]
    assert metrics.load(str(first)) == before
    result = json.loads(finished.stdout)
    (table,) = result["rankings"]
    assert table["best"] == "learning_rate=0.01"
    best, other = table["runs"]
    assert best["validation_loss"] < other["validation_loss"] - 0.1
    assert best["step"] == 4
    assert result["differing"] == []
    page = (tmp_path / "study" / "report.html").read_text()
    assert "learning_rate=1e-09" in page
    assert "learning_rate=0.01" in page


@pytest.mark.slow
def test_a_runs_error_ends_the_study(small_run, tmp_path):
    """With the run's message and exit code; a finished run before it stays."""
    data = tmp_path / "data"
    shutil.copytree(small_run / "data", data)
    (shard,) = data.glob("train-00000-*")
    shard.write_bytes(shard.read_bytes()[:-1])
    process = programs.run(
        "trainer.study",
        *SMALL,
        "--grid.training.seed=1,2",
        f"--data_dir={data}",
        f"--workdir={tmp_path / 'study'}",
    )
    assert process.returncode == 2
    assert shard.name in process.stderr
    assert stderr_lines(process.stderr) == ["Run 1 of 2, seed=1: training."]
    assert "trainer.train ended with exit code 2; see above" in process.stderr
    assert "Traceback" not in process.stderr
    assert process.stdout == ""
