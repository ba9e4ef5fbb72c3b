"""`trainer.generate`: prompts from anywhere, one message where they do not fit."""

import json
import shutil
import subprocess
import sys

import pytest

from tests import programs
from tests.conftest import ROOT, assert_refused
from tfrecords import checksums
from trainer.checkpoints import pretrained


def generate(small_run, *arguments):
    workdir = f"--workdir={small_run / 'run'}"
    return programs.run("trainer.generate", workdir, *arguments)


def texts(process) -> list[list[str]]:
    assert process.returncode == 0, process.stderr
    return [result["texts"] for result in json.loads(process.stdout)["results"]]


def test_prompts_of_a_file_get_what_each_gets_alone(small_run, tmp_path):
    path = tmp_path / "prompts.txt"
    prompts = ["The quick", "It did so many times, and the lazy dog", "é\u2028x"]
    path.write_bytes("\r\n".join([*prompts, ""]).encode())
    short = "--max_new_tokens=4"
    together = texts(generate(small_run, f"--prompt_file={path}", short, "--json"))
    for (text,), prompt in zip(together, prompts, strict=True):
        assert text.startswith(prompt)
    # A stream is not compiled, which would take most of the time.
    alone = generate(small_run, f"--prompt={prompts[1]}", short, "--stream")
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.endswith(f"{together[1][0]}\n")


@pytest.mark.slow
def test_a_stream_from_standard_input(small_run):
    """As a user would: a pipe in, text out while it is made."""
    workdir = f"--workdir={small_run / 'run'}"
    command = [sys.executable, "-m", "trainer.generate", workdir]
    command += ["--prompt_file=-", "--max_new_tokens=4", "--num_return_sequences=2"]
    process = subprocess.run(
        [*command, "--stream"],
        cwd=ROOT,
        input="The quick\nThe lazy\n",
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    titles = [line for line in lines if line.startswith("---")]
    assert titles == [
        f"--- prompt {prompt} of 2, {sample} of 2"
        for prompt in (1, 2)
        for sample in (1, 2)
    ]
    arguments = ["--prompt=The quick", "--prompt=The lazy", *command[-2:]]
    same = generate(small_run, *arguments)
    assert same.stdout == process.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt=a", "--prompt_file=b"], "either `--prompt` or `--prompt_file`"),
        (["--prompt_file=/no/such/file"], "must be a file of UTF-8 text"),
        (["--prompt_file=/dev/null"], "which is empty"),
        (["--stream", "--json"], "excludes `--json`"),
        (["--stream", "--num_beams=2"], "excludes `--num_beams`"),
        (["--num_beams=2", "--top_k=5"], "excludes `--temperature`"),
        (["--temperature=0", "--num_return_sequences=2"], "Received: 2. Use 1"),
        (["--prompt=caf\udce9"], "`--prompt` must be UTF-8"),
        (["--max_new_tokens=128"], "the model's 128 positions"),
        (["--top_p=1.5"], "top_p"),
        (["--step=99", "--prompt=a"], "must be that of a checkpoint in"),
    ],
)
def test_what_cannot_be_is_one_message(small_run, arguments, message):
    assert_refused(generate(small_run, *arguments), message)


def test_the_start_of_a_document_is_that_of_the_runs_dataset(small_run, tmp_path):
    shutil.copytree(small_run / "run", tmp_path / "run")
    path = tmp_path / "run" / "manifest.json"
    for token in ("", "The"):
        values = checksums.unsealed(json.loads(path.read_text()))
        values["config"]["start_token"] = token
        path.write_text(json.dumps(values))
        assert pretrained.load(str(tmp_path / "run"), 0, "").start_token == token
