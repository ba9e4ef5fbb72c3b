"""The programs as processes of their own, which start in no time.

Each is forked from a server that has imported TensorFlow, which takes seconds and so is
done once. It has its own memory, signals, environment and exit code.
"""

import contextlib
import importlib
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import forkserver

import huggingface_hub.constants

ROOT = pathlib.Path(__file__).parent.parent
_PRELOADED = [
    "tests.short_waits",
    "tensorflow",
    "tf_keras",
    "transformers.models.gpt2.modeling_tf_gpt2",
    "trainer.training.loop",
    "trainer.evaluation.evaluator",
    "trainer.exporting.serving",
    "trainer.planning.compilation",
    "trainer.runtime.preflight",
]
# What the server reads when it imports TensorFlow and transformers, for all programs.
_SERVER_ENVIRONMENT = {
    # PyTorch would be imported where there is one.
    "USE_TORCH": "0",
    # Of a bucket's files: a short wait after a fault, and nothing from memory.
    "GCS_RETRY_CONFIG_INIT_DELAY_TIME_US": "1000",
    "GCS_STAT_CACHE_MAX_AGE": "0",
}
_started: list["Program"] = []


class Program:
    """A running program, such as `trainer.train`, with its arguments.

    Variables of `environment` that TensorFlow reads when it is imported come too late.
    """

    def __init__(self, module: str, *arguments: str, **environment: str):
        self._folder = tempfile.TemporaryDirectory()
        context = multiprocessing.get_context("forkserver")
        start_server()
        # The server's environment is that of the test that started it.
        environment = os.environ | {"USE_TORCH": "0"} | environment
        self._process = context.Process(
            target=_run, args=(module, arguments, environment, self._folder.name)
        )
        self._process.start()
        _started.append(self)

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """Returns the exit code; that of a signal is negative; None: it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def finish(self, timeout: float = 300) -> tuple[int, str, str]:
        """Waits for its end; returns exit code, output and log."""
        self._process.join(timeout)
        if self.poll() is None:
            self.kill()
            self._process.join()
        folder = pathlib.Path(self._folder.name)
        texts = [(folder / name).read_text() for name in ("out", "log")]
        self._folder.cleanup()
        return self._process.exitcode, *texts


def start_server() -> None:
    """Starts the server unless it runs: a plan in this process forks from it, too."""
    multiprocessing.set_forkserver_preload(_PRELOADED)
    with _server_environment():
        forkserver.ensure_running()


def run(
    module: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess:
    """Runs a program to its end."""
    code, out, log = Program(module, *arguments, **environment).finish(timeout=1200)
    return subprocess.CompletedProcess([module, *arguments], code, out, log)


def kill_all() -> None:
    """So that a test that failed leaves no process, for which Python would wait."""
    while _started:
        _started.pop().kill()


@contextlib.contextmanager
def _server_environment() -> Iterator[None]:
    """For the server."""
    before = {name: os.environ.get(name) for name in _SERVER_ENVIRONMENT}
    os.environ.update(_SERVER_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _run(
    module: str, arguments: tuple[str, ...], environment: dict[str, str], folder: str
) -> None:
    for number, name in ((1, "out"), (2, "log")):
        stream = os.open(os.path.join(folder, name), os.O_CREAT | os.O_WRONLY)
        os.dup2(stream, number)
    os.environ.clear()
    os.environ.update(environment)
    importlib.reload(huggingface_hub.constants)  # which it made of the environment
    # A plan's own server would import TensorFlow, which this process has.
    compilation = importlib.import_module("trainer.planning.compilation")
    compilation.processes = multiprocessing.get_context("fork")
    os.chdir(ROOT)
    sys.argv = [module, *arguments]
    importlib.import_module(module).run()
