"""The programs as a user runs them, one after the other, in processes of their own."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests import programs
from tests.conftest import ROOT, SMALL, run_program


def succeed(process: subprocess.CompletedProcess) -> str:
    """Returns what a program printed that must not fail."""
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def trained(small_run, tmp_path_factory) -> tuple[pathlib.Path, dict]:
    """A folder with `data` and `run`, and what the trainer printed."""
    folder = tmp_path_factory.mktemp("end_to_end") / "copy"
    shutil.copytree(small_run, folder)
    return folder, json.loads((folder / "result.json").read_text())


def test_training_learns_and_leaves_what_it_should(trained):
    folder, result = trained
    assert result["steps"] == 6
    assert result["tokens"] == 6 * 4 * 128
    assert result["validation_loss_after"] < result["validation_loss_before"]
    names = {path.name for path in (folder / "run").iterdir()}
    assert names == {
        "checkpoints",
        "events.jsonl",
        "loss_curve.png",
        "manifest.json",
        "metrics.jsonl",
        "run.json",
        "tensorboard",
        "tokenizer",
    }
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [0, 2, 2, 4, 4, 6, 6]
    assert (folder / "run" / "loss_curve.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_has_the_metrics(trained):
    folder, _ = trained
    events, validation = (
        EventAccumulator(str(folder / "run" / "tensorboard" / name)).Reload()
        for name in ("train", "validation")
    )
    for name in ("loss", "learning_rate", "gradient_norm", "tokens_per_second"):
        assert [event.step for event in events.Tensors(name)] == [2, 4, 6]
    assert [event.step for event in validation.Tensors("loss")] == [0, 2, 4, 6]


def test_the_same_command_again_does_nothing_more(trained):
    folder, result = trained
    data, workdir = f"--data_dir={folder / 'data'}", f"--workdir={folder / 'run'}"
    process = programs.run("trainer.train", *SMALL, data, workdir, "--json")
    assert json.loads(succeed(process)) == result


def test_evaluate_gives_what_training_measured(trained):
    folder, result = trained
    data, workdir = f"--data_dir={folder / 'data'}", f"--workdir={folder / 'run'}"
    process = programs.run("trainer.evaluate", data, workdir, "--json")
    measured = json.loads(succeed(process))
    expected = pytest.approx(result["validation_loss_after"], rel=1e-6)
    assert measured["loss"] == expected
    assert measured["protocol"]["split"] == "validation"
    assert measured["word_perplexity"] > measured["token_perplexity"] > 1


@pytest.mark.slow
def test_attention_by_document_is_that_of_training_and_evaluation(trained):
    folder, result = trained
    data, workdir = f"--data_dir={folder / 'data'}", f"--workdir={folder / 'by-doc'}"
    command = ("trainer.train", *SMALL, "--num_virtual_devices=2", data, workdir)
    by_document = "--config.data.attention=document"
    learnt = json.loads(succeed(programs.run(*command, by_document, "--json")))
    # The same weights at first, which see less.
    before = learnt["validation_loss_before"]
    assert before != pytest.approx(result["validation_loss_before"], abs=1e-5)
    assert learnt["validation_loss_after"] < before
    measured = json.loads(
        succeed(programs.run("trainer.evaluate", data, workdir, "--json"))
    )
    assert measured["loss"] == pytest.approx(learnt["validation_loss_after"], rel=1e-6)
    assert measured["protocol"]["attention"] == "document"
    # Neither does a run go on with another attention.
    process = programs.run(*command)
    assert "data.attention: 'document' in the workdir, 'causal' now" in process.stderr


def test_a_hugging_face_checkpoint_goes_all_the_way(trained):
    """The run is exported, scored, and trained on."""
    folder, result = trained
    data, workdir = f"--data_dir={folder / 'data'}", f"--workdir={folder / 'run'}"
    exported = folder / "hf"
    succeed(run_program("trainer.export", workdir, f"--output_dir={exported}"))
    checkpoint = f"--checkpoint={exported}"
    process = programs.run("trainer.evaluate", data, checkpoint, "--json")
    loss = json.loads(succeed(process))["loss"]
    assert loss == pytest.approx(result["validation_loss_after"], rel=1e-5)
    process = programs.run(
        "trainer.train",
        *SMALL,
        data,
        f"--workdir={folder / 'tuned'}",
        f"--config.model.initial_checkpoint={exported}",
        "--config.optimizer.name=adafactor",
        "--json",
    )
    tuned = json.loads(succeed(process))
    assert tuned["validation_loss_before"] == pytest.approx(loss, rel=1e-5)
    assert tuned["validation_loss_after"] < loss


@pytest.mark.slow
@pytest.mark.alone
def test_quickstart(tmp_path):
    """`make quickstart` in a copy of the tree, twice; the model really learns."""
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in files:
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    # The environment that runs this test; the copy of setup.py is not newer than it.
    command = ["make", "--old-file=setup.py", "quickstart", f"VENV={sys.prefix}"]
    for _ in range(2):
        process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        printed = succeed(process)
    assert "--- 2 of 2" in printed
    path = tmp_path / "runs" / "quickstart" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    scores = [n["validation_perplexity"] for n in lines if "validation_loss" in n]
    assert scores[-1] < scores[0] / 20
