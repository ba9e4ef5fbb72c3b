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
    # A stream gives the same text.
    alone = generate(small_run, f"--prompt={prompts[1]}", short, "--stream")
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.endswith(f"{together[1][0]}\n")


def test_prompts_of_jsonl_keep_their_ids(small_run, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "a/b", "prompt": "The quick"}\n{"prompt": "It"}\n')
    flags = (
        "--min_new_tokens=4",
        "--max_new_tokens=4",
        "--no_prompt",
        "--temperature=0",
    )
    process = generate(small_run, f"--prompt_file={path}", *flags, "--json")
    found = json.loads(process.stdout)["results"]
    assert [row["id"] for row in found] == ["a/b", 2]
    # A text that is to end before its second character has one.
    (text,), _ = texts(process)
    assert not text.startswith("The quick")
    stop = text[1:3]
    assert text.index(stop) == 1
    flags = (*flags, f"--stop={stop}", "--document")
    shorter = texts(generate(small_run, "--prompt=The quick", *flags, "--json"))
    assert stop not in shorter[0][0]
    assert "generated 8 tokens in" in process.stderr


def test_samples_are_written_to_files(small_run, tmp_path):
    folder = tmp_path / "new" / "samples"
    flags = ("--prompt=The", "--prompt=It", "--max_new_tokens=3")
    process = generate(
        small_run, *flags, f"--output_dir={folder}", "--nfiles=2", "--nsamples=2"
    )
    assert process.returncode == 0, process.stderr
    paths = [folder / f"samples-0000{number}.txt" for number in range(2)]
    assert process.stdout.split() == list(map(str, paths))
    samples = [path.read_text().split("\n====================\n") for path in paths]
    assert [[s[:2] for s in file] for file in samples] == [
        ["Th", "Th", "It", "It", ""]
    ] * 2
    same = texts(generate(small_run, *flags, "--num_return_sequences=4", "--json"))
    assert [samples[0][0], samples[1][0], samples[0][1], samples[1][1]] == same[0]


@pytest.mark.slow
def test_a_conversation_continues_each_line(small_run):
    """As a user would: a prompt, its continuation, the next prompt."""
    workdir = f"--workdir={small_run / 'run'}"
    command = [sys.executable, "-m", "trainer.generate", workdir]
    process = subprocess.run(
        [*command, "--interactive", "--max_new_tokens=3"],
        cwd=ROOT,
        input=f"The quick\n{'The ' * 200}\nThe lazy\n",
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    first, second = process.stdout.splitlines()
    assert first.startswith("The quick")
    assert second.startswith("The lazy")
    assert "must fit into the model's 128 positions" in process.stderr


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
        (["--stream", "--output_dir=a"], "excludes `--output_dir`"),
        (["--interactive", "--stream"], "excludes `--interactive`"),
        (["--interactive", "--prompt=a"], "excludes `--prompt`"),
        (["--output_dir=a", "--num_return_sequences=2"], "excludes `--num_return"),
        (["--nfiles=2"], "belongs to `--output_dir`"),
        (["--nsamples=2"], "belongs to `--output_dir`"),
        (["--nsamples=2", "--output_dir=a", "--temperature=0"], "Received: 2. Use 1"),
        (["--num_beams=2", "--top_k=5"], "excludes `--top_k`"),
        (["--num_beams=2", "--min_p=0.5"], "excludes `--min_p`"),
        (["--num_beams=2", "--stop=a"], "excludes `--stop`"),
        (["--stop="], "`--stop` must not be empty"),
        (["--bad_words="], "`--bad_words` must not be empty"),
        (["--min_new_tokens=51"], "at most `--max_new_tokens`. Received: 51 and 50"),
        (["--typical_p=0"], "must be above 0"),
        (["--temperature=0", "--num_return_sequences=2"], "Received: 2. Use 1"),
        (["--prompt=caf\udce9"], "`--prompt` must be UTF-8"),
        (["--max_new_tokens=128"], "the model's 128 positions"),
        (["--top_p=1.5"], "top_p"),
        (["--top_k=3000000000"], "in the range [0, 2147483647]"),
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
