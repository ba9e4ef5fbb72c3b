"""The benchmark of the training step, on a CPU and tiny; and all of them together."""

import json
import subprocess
import sys

import pytest

from benchmarks import all as benchmarks
from tests.conftest import ROOT

TINY = ["--layers=1", "--heads=2", "--channels=32", "--vocabulary=97"]
TINY += ["--length=16", "--microbatch_size=2", "--steps=2", "--rounds=2"]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "benchmarks/training_step.py", *TINY, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.slow
def test_contestants_alternate_and_one_that_fails_is_reported(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'ImportError: no torch here' >&2\nexit 1\n")
    python.chmod(0o755)
    output = tmp_path / "step.json"
    answer = run(
        "--contestants=ours-bfloat16,torch-bfloat16,ours-float32-block",
        f"--torch_python={python}",
        f"--output={output}",
    )
    assert answer.returncode == 0, answer.stderr
    rows = json.loads(output.read_text())["rows"]
    failed = rows.pop("torch-bfloat16")
    assert failed["error"] == "ImportError: no torch here"
    assert "torch-bfloat16             not measured: ImportError" in answer.stdout
    for name, row in rows.items():
        assert len(row["seconds"]) == 2, name
        # 2 steps of 2 x 16 tokens each round; the same weights and batch.
        median = sum(row["seconds"]) / 2
        assert row["tokens_per_second"] == pytest.approx(2 * 2 * 16 / median)
        assert row["loss"] < row["first_loss"] < 4.7  # ln(97) is 4.57
        assert row["mfu"] is None


def test_an_unknown_contestant_is_refused():
    answer = run("--contestants=jax-float32")
    assert answer.returncode == 1
    assert "kind must be known. Received: jax-float32" in answer.stderr


def test_what_cannot_be_measured_is_reported(tmp_path):
    output = tmp_path / "benchmark.json"
    answer = subprocess.run(
        [sys.executable, "-m", "benchmarks.all", "--only=memory", f"--output={output}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    report = json.loads(output.read_text())
    assert report["benchmarks"]["memory"] == {"error": "needs --text and --tokenizer"}
    assert "not measured: needs --text and --tokenizer" in answer.stdout
    assert report["versions"]["tensorflow"].startswith("2.")
    assert report["machine"]["cores"] >= 1
    failed = benchmarks.measure("no_such_file.py --x", 60)
    assert failed["rows"] == []
    assert "No such file" in failed["error"]


def test_each_benchmark_of_the_command_exists():
    for settings in benchmarks.BENCHMARKS.values():
        assert (ROOT / "benchmarks" / settings.split()[0]).is_file()
