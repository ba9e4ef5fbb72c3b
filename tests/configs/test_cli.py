"""The command line: programs answer at once, one table, progress, no chatter."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import pty
import struct
import subprocess
import sys
import termios

import pytest

from benchmarks import startup
from configs import cli, paths
from configs.errors import UserError
from tests.conftest import ROOT

HEAVY = {"tensorflow", "tf_keras", "transformers", "matplotlib", "pyarrow", "jax"}
ANSWER = """
import importlib, sys
sys.argv = sys.argv[1:]
try:
    importlib.import_module(sys.argv[0]).run()
finally:
    print(*(HEAVY & set(sys.modules)), file=sys.stderr)
""".replace("HEAVY", repr(HEAVY))


def run(program, *arguments, **options):
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


@pytest.mark.parametrize("program", sorted(set(startup.CASES) - {"trainer.forever"}))
def test_programs_answer_before_they_import_the_work(program):
    """Help and mistakes, of every program; `forever` answers by `train`."""
    for case, arguments in startup.CASES[program].items():
        answer = run(ANSWER, program, *arguments)
        assert answer.returncode == 2, (case, answer.stderr)
        *_, message, loaded, _ = answer.stderr.split("\n")
        assert message, case
        assert not loaded, case
    answer = run(ANSWER, program, "--help")
    assert answer.returncode == 0
    assert f"\n{program}:\n" in answer.stdout
    assert answer.stderr.split("\n")[-2] == ""


TPU_NAME = """
import sys
from absl import flags
from configs import cli
cli.define_hardware()
flags.FLAGS(sys.argv)
print(cli.tpu_name())
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "grpc://10.0.0.2:8470"),
        (["--tpu=local"], "local"),
        (["--tpu=none"], "none"),
        (["--num_virtual_devices=2"], ""),
    ],
)
def test_the_environment_names_the_tpu_where_no_flag_does(arguments, expected):
    environment = os.environ | {"TPU_NAME": "grpc://10.0.0.2:8470"}
    assert run(TPU_NAME, *arguments, env=environment).stdout == f"{expected}\n"


def test_a_tpu_of_the_environment_reads_no_local_folder(tmp_path):
    """As one that `--tpu` names."""
    answer = run(
        ANSWER,
        "trainer.train",
        *("--config=configs/quickstart.py", f"--data_dir={tmp_path}"),
        env=os.environ | {"TPU_NAME": "my-tpu"},
    )
    assert answer.returncode == 2
    assert "`--data_dir` must be gs://… with a remote TPU" in answer.stderr


def test_a_table_has_columns_and_json_has_no_nan(capsys):
    result = {"num_steps": 12000, "loss": 1.5, "worst": float("nan"), "names": ["a"]}
    cli.print_result(result, as_json=False)
    cli.print_result({"a": result}, as_json=True)
    *table, text = capsys.readouterr().out.splitlines()
    assert table == [
        "num steps  12,000",
        "loss       1.5000",
        "worst      nan",
        "names      a",
    ]
    assert json.loads(text) == {"a": {**result, "worst": None}}
    cli.print_result({}, as_json=False, rows=[("split", "n", "m"), ("train", 1000, 2)])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["split      n  m", "train  1,000  2"]


CHATTER = """
import os
from configs import chatter
chatter.set_environment()
chatter.filter_stderr()
for line in (
    "WARNING: All log messages before absl::InitializeLog() is called are written",
    "I0000 00:00:1795650140.073181    4298 device_compiler.h:196] Compiled cluster",
    "2026 E cuda_platform.cc:51] failed call to cuInit: INTERNAL: UNKNOWN ERROR (303)",
    "E0000 00:00:1795650140.073181    4298 device.cc:196] a real error",
    "2026 E cuda_platform.cc:51] failed call to cuInit: CUDA_ERROR_OUT_OF_MEMORY",
    "I1126 00:33:34.737638 140480385911680 strategy.py:73] of Python",
):
    os.write(2, f"{line}\\n".encode())
os.abort()
"""


def test_known_chatter_is_dropped_and_real_errors_stay_even_after_a_crash():
    lines = run(CHATTER).stderr.splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == [
        "error",
        "CUDA_ERROR_OUT_OF_MEMORY",
        "Python",
    ]
    everything = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0"}
    assert len(run(CHATTER, env=everything).stderr.splitlines()) == 6


PROGRESS = """
import sys, time
from absl import app, logging
from configs import progress
progress._LOG_SECONDS = 0.05
def main(_):
    with progress.progress("outer", 4, "step") as bar:
        for number in range(4):
            time.sleep(0.1)
            with progress.progress("inner", 2, "batch", delay=1, leave=False) as inner:
                inner.update(2)
            logging.warning("message %d", number)
            bar.update()
app.run(main)
"""


def test_progress_is_a_line_of_the_log_now_and_then():
    lines = run(PROGRESS).stderr.splitlines()
    assert sum("] message" in line for line in lines) == 4
    bars = [line for line in lines if "outer" in line]
    assert "outer: 25 %, 1 of 4" in bars[0]
    assert "left" in bars[0]
    assert "\r" not in "".join(lines)
    assert len(lines) == 4 + len(bars)


def test_progress_is_a_bar_below_the_log_on_a_terminal():
    control, terminal = pty.openpty()
    size = struct.pack("HHHH", 24, 80, 0, 0)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRESS], cwd=ROOT, stderr=terminal
    )
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while block := os.read(control, 4096):
            shown += block
    assert process.wait() == 0
    lines = shown.decode().replace("\r\n", "\n").split("\n")
    messages = [line for line in lines if "] message" in line]
    # Each message begins a line, after the bar there was wiped.
    assert all(line.rpartition("\r")[2].startswith("W") for line in messages)
    assert len(messages) == 4
    last = [line for line in lines if line.strip()][-1]
    assert "outer: 100%" in last
    assert "4/4" in last
    assert "inner" not in shown.decode()


@pytest.mark.parametrize(
    "number", [errno.EROFS, errno.EACCES, errno.EIO, errno.ENAMETOOLONG, errno.EISDIR]
)
def test_a_file_that_cannot_be_written_is_one_message(number, capsys):
    path = "/kaggle/input/x"
    partial = OSError(number, os.strerror(number), f"{path}.0123abcd.partial")
    assert ends_with(partial) == 2
    expected = f"error: {path} cannot be used: {os.strerror(number)}. Name another.\n"
    assert capsys.readouterr().err == expected


def ends_with(error: Exception) -> int:
    """The exit code of a program that raises it."""

    def fail():
        raise error

    with pytest.raises(SystemExit) as end:
        cli.guard(fail)
    return end.value.code


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/disk/x"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "/disk/x"),
        # Of Rust, as tokenizers raises it, and of TensorFlow.
        Exception("No space left on device (os error 28)"),
        RuntimeError("/disk/x; No space left on device [Op:SaveV2]"),
    ],
)
def test_a_full_disk_is_one_message_whatever_library_writes(error, capsys):
    assert ends_with(error) == 1
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("error: The disk is full: ")


def test_other_errors_keep_their_stack_trace():
    for error in (OSError(errno.ENOENT, "x"), RuntimeError("x"), KeyError("x")):
        with pytest.raises(type(error)):
            cli.guard(lambda error=error: (_ for _ in ()).throw(error))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config=quickstart"],
        ["--config", "quickstart"],
        ["--config=configs/quickstart.py"],
        ["--config=own.py"],
        ["--config", "my job.py"],
    ],
)
def test_a_config_is_a_file_or_the_name_of_an_installed_one(
    arguments, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()  # a folder is not a config
    for name in ("own.py", "my job.py"):
        (tmp_path / name).write_text("")
    *_, last = paths.resolve_configs(["program", *arguments])
    path = pathlib.Path(last.removeprefix("--config="))
    expected = ROOT / "configs" if path.name == "quickstart.py" else tmp_path
    assert (tmp_path / path).parent == expected
    assert path.exists()


def test_an_unknown_config_is_one_message_with_all_names():
    for name in ("quickstrat", "schema", "configs/cli.py/../x", "quickstart/"):
        names = "gpt2_xl, gpt2_xl_lora, jokes, quickstart, tiny_corpus, wikitext103"
        with pytest.raises(UserError, match=names) as e:
            paths.resolve_configs(["program", f"--config={name}"])
        assert str(e.value).endswith(f"Received: {name}.")
