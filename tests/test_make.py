"""The Makefile and its scripts, with a stand-in for Python: which calls they make."""

import os
import pathlib
import subprocess

import pytest

from tests.conftest import ROOT

# Appends its arguments to CALLS, each ended by NUL, and a call by a line end. Reads a
# script from standard input, as Python would. `pip show` does not find the wheel, and
# `pip freeze` lists TensorFlow's for TPUs.
STAND_IN = """#!/bin/sh
[ -z "$MPLBACKEND$TPU_LIBRARY_PATH" ] || exit 3
printf '%s\\0' "$@" >>"$CALLS"
printf '\\n' >>"$CALLS"
case "$*" in
  *"pip show"*) exit 1 ;;
  *"pip freeze"*) echo "tensorflow-tpu==2.20.0" ;;
  *venv*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
esac
[ "$1" != - ] || cat >/dev/null
"""


@pytest.fixture
def stand_in(tmp_path) -> pathlib.Path:
    """An executable that records how it is called."""
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    return python


@pytest.fixture
def venv(tmp_path, stand_in) -> pathlib.Path:
    """An environment that is installed, as far as `make` can tell."""
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    stand_in.rename(folder / "bin" / "python")
    for stamp in (".base", ".plan"):
        (folder / stamp).touch()
    return folder


def calls(tmp_path: pathlib.Path, *command: str, **environment: str) -> list[list[str]]:
    """Runs a command in ROOT; returns the arguments of each call of the stand-in."""
    record = tmp_path / "calls"
    record.unlink(missing_ok=True)
    # TensorFlow has set the first of them here.
    inherited = dict(os.environ) | {"TPU_LIBRARY_PATH": "", "MPLBACKEND": ""}
    environment = inherited | {"CALLS": str(record)} | environment
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    if not record.exists():
        return []
    lines = record.read_text().split("\0\n")[:-1]
    return [line.split("\0") for line in lines]


@pytest.mark.parametrize(
    "text",
    [
        "it cost $50",
        "$(shell echo no) ${HOME} $$ `echo no`",
        "it's \"quoted\", isn't it?",
        "two  spaces, and one at the end ",
        r"back\slash \n * ? ~ # ; & | < > ! % =",
        "two\nlines\n\nand a third",
        "\N{LATIN SMALL LETTER E WITH ACUTE}\N{SNOWMAN}",
    ],
)
@pytest.mark.parametrize("by_environment", [False, True])
def test_text_reaches_the_program_as_it_was_typed(tmp_path, venv, text, by_environment):
    typed = {"PROMPT": text, "WORKDIR": text}
    arguments = [] if by_environment else [f"{k}={v}" for k, v in typed.items()]
    environment = typed if by_environment else {}
    command = ["make", "generate", f"VENV={venv}", *arguments]
    (call,) = calls(tmp_path, *command, **environment)
    assert call == ["-m", "trainer.generate", f"--workdir={text}", f"--prompt={text}"]


def test_every_variable_is_one_argument(tmp_path, venv):
    make = ["make", f"VENV={venv}"]
    text = "my $5 'data'"
    expected = {
        ("preprocess", "CONFIG"): "config",
        ("preprocess", "DATA"): "output_dir",
        ("preprocess", "INPUT"): "input",
        ("preprocess", "VALIDATION_INPUT"): "validation_input",
        ("inspect", "DATA"): "data_dir",
        ("train", "TPU"): "tpu",
        ("train", "DEVICES"): "num_virtual_devices",
        ("train-forever", "WORKDIR"): "workdir",
        ("evaluate", "DATA"): "data_dir",
        ("doctor", "CONFIG"): "config",
        ("plan", "TPU"): "tpu_type",
        ("export", "OUTPUT"): "output_dir",
        ("export", "HUB"): "push_to_hub",
        ("report", "OUTPUT"): "output",
        ("report", "WORKDIRS"): "workdirs",
    }
    for (target, variable), flag in expected.items():
        (call,) = calls(tmp_path, *make, target, f"{variable}={text}")
        assert f"--{flag}={text}" in call


def test_folders_are_named_after_the_config(tmp_path, venv):
    command = ["make", "train", f"VENV={venv}", "CONFIG=my jobs/a  job.v2.py"]
    (call,) = calls(tmp_path, *command)
    assert call[2:] == [
        "--config=my jobs/a  job.v2.py",
        "--data_dir=data/a  job.v2",
        "--workdir=runs/a  job.v2",
    ]


def test_args_are_flags_as_the_shell_reads_them(tmp_path, venv):
    flags = "--seed=1 --stop='it cost $50' --text_field=\"a b\""
    command = ["make", "generate", f"VENV={venv}", f"ARGS={flags}"]
    (call,) = calls(tmp_path, *command)
    assert call[3:] == ["--seed=1", "--stop=it cost $50", "--text_field=a b"]


def test_installing_creates_an_environment_with_the_constraints(tmp_path, stand_in):
    venv = tmp_path / "my venv"
    environment = {"PYTHON": str(stand_in), "CONSTRAINTS": "my constraints.txt"}
    install = ["sh", "scripts/install.sh", str(venv)]
    check, create, base = calls(tmp_path, *install, **environment)
    assert check[0] == "-c"
    assert create == ["-m", "venv", str(venv)]
    pip = ["-m", "pip", "install", "--quiet"]
    constraint = "--constraint=my constraints.txt"
    assert base == [*pip, "--editable", ".", constraint]
    (extra,) = calls(tmp_path, *install, "dev,plan")
    assert extra == [*pip, "--editable", ".[dev,plan]"]


def test_an_environment_for_a_tpu_keeps_one_tensorflow(tmp_path, stand_in):
    venv = tmp_path / "venv"
    command = ["make", "install-tpu", f"VENV={venv}", f"PYTHON={stand_in}"]
    pip = ["-m", "pip"]
    install = [*pip, "install", "--quiet"]
    steps = [
        [*install, "--no-compile", "--editable", ".[tpu]"],
        [*pip, "uninstall", "--quiet", "--yes", "tensorflow"],
        [*pip, "freeze"],
        [*install, "--no-deps", "--force-reinstall", "tensorflow-tpu==2.20.0"],
        ["-"],  # FORCE_TF_AVAILABLE
        ["-"],  # lists the devices
    ]
    assert calls(tmp_path, *command)[-6:] == steps
    # What is installed is only looked at.
    assert calls(tmp_path, *command) == [
        [*pip, "show", "--quiet", "tensorflow"],
        ["-"],
        ["-"],
    ]
    steps[0][-1] = ".[tpu,dev]"
    made = calls(tmp_path, "make", f"{venv}/.dev", f"VENV={venv}")
    assert made == steps[:-1]


def test_what_a_notebook_exports_does_not_reach_the_programs(tmp_path, venv):
    exported = {
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "TPU_LIBRARY_PATH": "/somewhere/libtpu.so",
    }
    (call,) = calls(tmp_path, "make", "inspect", f"VENV={venv}", **exported)
    assert call[1] == "tfrecords.inspect"


def test_help_has_a_line_for_each_target():
    text = (ROOT / "Makefile").read_text()
    phony = text.split(".PHONY:")[1].split("\n\n")[0].replace("\\", "").split()
    printed = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    lines = printed.split("Variables:")[0].splitlines()[1:]
    assert [line.split()[0] for line in lines] == phony
