"""`trainer.generate`: prompts from anywhere, one message where they do not fit."""

import json
import subprocess
import sys

import pytest

from tests import programs
from tests.conftest import ROOT, assert_refused


def generate(small_run, *arguments):
    folder = small_run
    return programs.run("trainer.generate", f"--workdir={folder / 'run'}", *arguments)


def texts(found) -> list[list[str]]:
    assert found.returncode == 0, found.stderr
    return [result["texts"] for result in json.loads(found.stdout)["results"]]


def test_prompts_of_a_file_get_what_each_gets_alone(small_run, tmp_path):
    path = tmp_path / "prompts.txt"
    prompts = ["The quick", "It did so many times, and the lazy dog", "é\u2028x"]
    path.write_bytes("\r\n".join([*prompts, ""]).encode())
    short = "--max_new_tokens=4"
    together = texts(generate(small_run, f"--prompt_file={path}", short, "--json"))
    for (text,), prompt in zip(together, prompts, strict=True):
        assert text.startswith(prompt)
    alone = texts(generate(small_run, f"--prompt={prompts[1]}", short, "--json"))
    assert alone == together[1:2]


@pytest.mark.slow
def test_a_stream_from_standard_input(small_run):
    """As a user would: a pipe in, text out while it is made."""
    folder = small_run
    command = [sys.executable, "-m", "trainer.generate", f"--workdir={folder / 'run'}"]
    command += ["--prompt_file=-", "--max_new_tokens=4", "--num_return_sequences=2"]
    found = subprocess.run(
        [*command, "--stream"],
        cwd=ROOT,
        input="The quick\nThe lazy\n",
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    titles = [line for line in lines if line.startswith("---")]
    assert titles == [
        f"--- prompt {prompt} of 2, {sample} of 2"
        for prompt in (1, 2)
        for sample in (1, 2)
    ]
    arguments = ["--prompt=The quick", "--prompt=The lazy", *command[-2:]]
    same = generate(small_run, *arguments)
    assert same.stdout == found.stdout


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
    found = generate(small_run, *arguments)
    assert_refused(found, message)
