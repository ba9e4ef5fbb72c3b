"""The Makefile and its scripts, with a stand-in for Python: which calls they make."""

import os
import pathlib
import subprocess

import pytest

from tests.conftest import ROOT

# Appends its arguments to CALLS, each ended by NUL, and a call by a line end. Reads a
# script from standard input, as Python would. `pip show` does not find the wheel, and
# packages are in the environment's own folder.
STAND_IN = """#!/bin/sh
[ -z "$MPLBACKEND$TPU_LIBRARY_PATH" ] || exit 3
printf '%s\\0' "$@" >>"$CALLS"
printf '\\n' >>"$CALLS"
case "$*" in
  *"pip show"*) exit 1 ;;
  *.[[]tpu*) [ -s "${0%/bin/python}/tensorflow-2.20.0.dist-info/METADATA" ] || exit 4 ;;
  *purelib*) echo "${0%/bin/python}" ;;
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
        ("study", "WORKDIR"): "workdir",
        ("evaluate", "DATA"): "data_dir",
        ("doctor", "CONFIG"): "config",
        ("plan", "TPU"): "tpu_type",
        ("advise", "TPU"): "tpu_type",
        ("demo", "WORKDIR"): "workdir",
        ("demo", "PORT"): "port",
        ("predict", "TEXT"): "text",
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
    check, create, _, upgrade, base = calls(tmp_path, *install, **environment)
    assert check[0] == "-c"
    assert create == ["-m", "venv", str(venv)]
    pip = ["-m", "pip", "install", "--quiet"]
    constraint = "--constraint=my constraints.txt"
    assert upgrade == [*pip, "--upgrade", "pip", constraint]
    assert base == [*pip, "--editable", ".", constraint]
    check, extra = calls(tmp_path, *install, "dev,plan")
    assert "(3, 11)" in check[1]  # which JAX needs
    assert extra == [*pip, "--editable", ".[dev,plan]"]


def test_an_environment_for_a_tpu_keeps_one_tensorflow(tmp_path, stand_in):
    venv = tmp_path / "venv"
    command = ["make", "install-tpu", f"VENV={venv}", f"PYTHON={stand_in}"]
    pip = ["-m", "pip"]
    install = [*pip, "install", "--quiet"]
    steps = [
        [*install, "--no-compile", "--editable", ".[tpu]", "libtpu==0.0.14"],
        ["-"],  # FORCE_TF_AVAILABLE
        ["-"],  # lists the devices
    ]
    assert calls(tmp_path, *command)[-3:] == steps
    assert not list(venv.glob("tensorflow-*"))  # which stood for the other wheel
    # What is installed is only looked at.
    show, imports, devices = calls(tmp_path, *command)
    assert show == [*pip, "show", "--quiet", "tensorflow"]
    assert imports[0] == "-c"
    assert "import tf_keras" in imports[1]
    assert devices == ["-"]
    steps[0][-2] = ".[tpu,dev]"
    made = calls(tmp_path, "make", f"{venv}/.dev", f"VENV={venv}")
    assert made[-2:] == steps[:-1]


# As Python in an environment for a TPU that answers to one version of libtpu, which
# ANSWERS names. There is no 0.0.21 for it.
TPU_STAND_IN = r"""#!/bin/sh
echo "$*" >>"$CALLS"
case "$*" in
  *libtpu==0.0.21) echo "error: no matching distribution" >&2; exit 1 ;;
  *libtpu==*) echo "${*##*==}" >"$INSTALLED" ;;
  *trainer.doctor*)
    version=$(cat "$INSTALLED")
    case $ANSWERS in
      "$version") echo "replicas compute  True"; exit 0 ;;
      busy) message="The TPU is already in use by another process" ;;
      *) message="No TPU platform found" ;;
    esac
    [ "$version" != 0.0.17 ] || exit 134 # it may abort
    echo "error: \`--tpu\` must name a TPU that can be reached. $message" >&2
    exit 2 ;;
esac
"""


@pytest.fixture
def doctor(tmp_path):
    """Runs `make doctor` on a machine whose TPU answers to one version of libtpu."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.write_text(TPU_STAND_IN)
    python.chmod(0o755)
    for stamp in (".base", ".tpu"):
        (venv / stamp).touch()
    (venv / ".libtpu").write_text("0.0.14\n")
    (tmp_path / "installed").write_text("0.0.14\n")

    def run(answers: str, *arguments: str, device: str = str(venv)):
        record = tmp_path / "calls"
        record.unlink(missing_ok=True)
        environment = os.environ | {
            "CALLS": str(record),
            "INSTALLED": str(tmp_path / "installed"),
            "ANSWERS": answers,
            "TPU_DEVICE_FILES": device,
        }
        result = subprocess.run(
            ["make", "doctor", f"VENV={venv}", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        kept = [(venv / ".libtpu").read_text(), (tmp_path / "installed").read_text()]
        assert kept[0] == kept[1]
        tried = [line for line in record.read_text().splitlines() if "libtpu" in line]
        versions = [line.partition("libtpu==")[2] for line in tried]
        return result, kept[0].strip(), versions

    return run


def test_doctor_tries_other_versions_of_libtpu_and_keeps_the_one_that_works(doctor):
    result, kept, tried = doctor("0.0.24", "TPU=local")
    assert result.returncode == 0, result.stderr
    assert (kept, tried) == ("0.0.24", ["0.0.17", "0.0.21", "0.0.24"])
    assert "replicas compute  True" in result.stdout
    assert "libtpu 0.0.21: not available for this Python" in result.stderr
    assert (
        "The TPU answers with libtpu 0.0.24, which is kept. It did not with 0.0.14, "
        "0.0.17." in result.stderr
    )
    result, kept, tried = doctor("0.0.24")
    assert (result.returncode, kept, tried) == (0, "0.0.24", [])
    assert "libtpu" not in result.stderr


def test_doctor_tells_all_that_it_tried_where_nothing_works(doctor):
    result, kept, tried = doctor("none of them")
    assert result.returncode == 2
    assert (kept, tried[-2:]) == ("0.0.14", ["0.0.31", "0.0.14"])
    assert "0.0.14, 0.0.17, 0.0.24, 0.0.31. Installed again: 0.0.14" in result.stderr


@pytest.mark.parametrize(
    ("answers", "arguments", "device"),
    [
        ("busy", [], None),  # another program has the TPU
        ("0.0.24", [], "/dev/no_such_device*"),  # a machine without a TPU
        ("0.0.24", ["TPU=grpc://10.0.0.1:8470"], None),  # a TPU of another machine
    ],
)
def test_doctor_leaves_libtpu_alone(doctor, answers, arguments, device):
    where = {"device": device} if device else {}
    result, kept, tried = doctor(answers, *arguments, **where)
    assert (result.returncode, kept, tried) == (2, "0.0.14", [])
    assert "must name a TPU that can be reached" in result.stderr


def test_doctor_knows_the_error_of_a_tpu_that_does_not_answer():
    phrase = "must name a TPU that can be reached"
    assert phrase in (ROOT / "scripts" / "doctor.sh").read_text()
    assert phrase in (ROOT / "trainer" / "runtime" / "strategy.py").read_text()


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
