"""The program `trainer.report`: its output, its messages, and runs in buckets."""

import dataclasses
import json
import math

import pytest

from tests import programs
from tests.conftest import run_program
from tests.trainer.reporting.folders import write_run
from tfrecords.storage import files, gcs
from trainer.reporting import runs


def make(*arguments):
    """Runs the program; returns its exit code, stdout and stderr."""
    process = programs.run("trainer.report", *map(str, arguments))
    assert "Traceback" not in process.stderr, process.stderr
    return process.returncode, process.stdout, process.stderr


def test_values_that_are_not_finite_or_not_valid_text_are_left_out(tmp_path):
    lines = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": math.nan}, {"step": 3}]
    lines.append({"step": 3, "validation_loss": 800.0})  # its exp overflows
    folder = write_run(tmp_path / "run", lines=lines)
    (folder / "samples.jsonl").write_text('{"step": 1, "text": "half \\ud83d"}\n')
    code, _, log = make(f"--workdir={folder}", f"--output={tmp_path}/x.html")
    assert code == 0, log
    page = (tmp_path / "x.html").read_text()
    assert "half ?" in page
    assert "nan" not in page.partition('<section id="curves">')[2]


def test_the_backend_that_a_notebook_exports_does_not_matter(tmp_path, monkeypatch):
    """It is a module of the notebook's own environment."""
    monkeypatch.setenv("MPLBACKEND", "no_such_backend")
    folder = write_run(tmp_path / "run")
    flags = (f"--workdir={folder}", f"--output={tmp_path}/x.html")
    process = run_program("trainer.report", *flags)
    assert process.returncode == 0, process.stderr


def test_runs_and_reports_can_be_in_buckets(bucket, tmp_path):
    folder = write_run(tmp_path / "run")
    for path in folder.rglob("*.*"):
        name = f"runs/first/{path.relative_to(folder)}"
        gcs.blob(f"{bucket}/{name}").upload_from_string(path.read_bytes())
    there = runs.read(f"{bucket}/runs/first/", "run")
    here = runs.read(str(folder), "run")
    assert there.evaluations
    assert dataclasses.replace(there, workdir=str(folder)) == here
    output = f"{bucket}/report.html"
    code, _, log = make(f"--workdir={bucket}/runs/first", f"--output={output}")
    assert code == 0, log
    assert files.read(output).startswith(b"<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Received: neither."),
        (["--workdir={run}", "--workdirs={run}"], "Received: both."),
        (["--workdir={run}"], "`--output` must be the HTML file"),
        (["--workdir={run}", "--output={run}"], "`--output` must be the HTML file"),
        (["--workdir={run}/plans", "--output=x.html"], "which has no run.json"),
        (["--workdirs={run},{run}/", "--output=x.html"], "must name each run once"),
        (["--workdir={run}", "--output=x.html", "more"], "Only flags"),
    ],
)
def test_a_wrong_flag_is_one_message(tmp_path, arguments, message):
    folder = write_run(tmp_path / "run")
    code, out, log = make(*(argument.format(run=folder) for argument in arguments))
    assert (code, out) == (2, "")
    assert log.splitlines()[-1].startswith("error: ")
    assert message in log


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "{", "run.json is damaged"),
        ("run.json", "[]", "run.json is damaged: not an object"),
        ("metrics.jsonl", '{"step": 1}\n{"st\n{"step": 2}\n', "metrics.jsonl, line 2"),
        ("metrics.jsonl", '{"loss": 1}\n', "line 1 is damaged: no field 'step'"),
        ("plans/v2-8.json", "", "v2-8.json is damaged"),
        ("manifest.json", "{}", "manifest.json is damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    folder = write_run(tmp_path / "run")
    (folder / name).write_text(content)
    code, _, log = make(f"--workdir={folder}", f"--output={tmp_path}/x.html")
    assert code == 2
    assert message in log


def test_the_program_prints_the_path_of_the_page(tmp_path):
    folder, output = write_run(tmp_path / "a" / "run"), tmp_path / "new" / "x.html"
    other = write_run(tmp_path / "b" / "run")
    _, out, _ = make(f"--workdirs={folder},{other}", f"--output={output}", "--json")
    assert json.loads(out) == {"output": str(output), "runs": ["a/run", "b/run"]}
    _, out, _ = make(f"--workdir={folder}", f"--output={output}")
    assert str(output) in out
    assert output.read_text().startswith("<!DOCTYPE html>")
