"""A TPU machine without a TPU, which runs programs and logs what its TPU does."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.conftest import ROOT

_SOURCES = pathlib.Path(__file__).parent
# The kernels and the structures of libtpu's interface change from version to version.
_TENSORFLOW = "2.20.0"


@dataclasses.dataclass(frozen=True)
class Finished:
    """A program that has ended.

    Attributes:
      returncode: of the process.
      stdout: what it printed.
      stderr: its log.
      folder: of the programs that were compiled for the TPU, `ID.hlo`.
    """

    returncode: int
    stdout: str
    stderr: str
    folder: pathlib.Path

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """Returns what the TPU did, in order: "compile", "execute", "read"."""
        lines = (self.folder / "log.jsonl").read_text().splitlines()
        events = map(json.loads, lines)
        return [event for event in events if event["event"] in kinds]


def build(venv: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Compiles the plugin against the headers of an environment's TensorFlow."""
    if not shutil.which("g++"):
        pytest.skip("needs g++, to compile the fake TPU")
    (packages,) = venv.glob("lib/python3*/site-packages")
    versions = [path.name.split("-")[1] for path in packages.glob("tensorflow_tpu-*")]
    assert versions == [f"{_TENSORFLOW}.dist"], (
        f"tests/fake_tpu is written for tensorflow-tpu {_TENSORFLOW}. Received: "
        f"{versions}. Adapt its kernels and answers, and then this version."
    )
    plugin = folder / "fake_tpu.so"
    sources = sorted(_SOURCES.glob("*.cc"))
    newest = max(path.stat().st_mtime for path in [*sources, *_SOURCES.glob("*.h")])
    if plugin.exists() and plugin.stat().st_mtime > newest:
        return plugin
    tensorflow = packages / "tensorflow"
    include = tensorflow / "include"
    folders = [_SOURCES, _SOURCES / "stubs", include, include / "third_party"]
    folders.append(include / "external/farmhash_archive/src")
    flags = ["-std=c++17", "-O1", "-fPIC", "-w", "-DNDEBUG", "-shared"]
    # As TensorFlow itself was compiled: its tensors are aligned so.
    flags += ["-DEIGEN_MAX_ALIGN_BYTES=64", "-D_GLIBCXX_USE_CXX11_ABI=1"]
    flags += [f"-I{path}" for path in folders]
    libraries = [f"-L{tensorflow}", f"-Wl,-rpath,{tensorflow}"]
    libraries += ["-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"]
    # In one go: TensorFlow's headers take most of the time.
    command = ["g++", *flags, "-x", "c++", "-", "-o", str(plugin), *libraries]
    includes = "".join(f'#include "{path}"\n' for path in sources)
    subprocess.run(command, input=includes, text=True, check=True)
    return plugin


class Machine:
    """A host with TPU cores that are not there, in an environment for TPUs.

    Args:
      venv: made by `make install-tpu`.
      plugin: what `build` returned.
      folder: for what the programs print and log.
    """

    def __init__(self, venv: pathlib.Path, plugin: pathlib.Path, folder: pathlib.Path):
        self._plugin = plugin
        self._folder = folder
        self._num_started = 0
        # What the launcher's TensorFlow and transformers read when they are imported.
        removed = ("PYTHONPATH", "TPU_LIBRARY_PATH")
        self._environment = {k: v for k, v in os.environ.items() if k not in removed}
        self._environment |= {"TPU_SKIP_MDS_QUERY": "1", "USE_TORCH": "0"}
        self._launcher = subprocess.Popen(
            [str(venv / "bin/python"), "-m", "tests.fake_tpu.launch"],
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def run(
        self,
        module: str,
        *arguments: str,
        cores: int = 8,
        kernels: str = "XLA_CPU_JIT",
        timeout: float = 300,
        **environment: str,
    ) -> Finished:
        """Runs a program to its end, or kills it after `timeout` seconds.

        Args:
          module: of the program, such as `trainer.train`.
          *arguments: of the program.
          cores: of this host: 1, 2, 4 or 8; 0: it has no TPU.
          kernels: that lower the graphs: XLA_CPU_JIT or XLA_TPU_JIT.
          timeout: in seconds.
          **environment: of the program.
        """
        process, folder = self._start(
            module, arguments, cores, FAKE_TPU_JIT=kernels, **environment
        )
        timer = threading.Timer(timeout, os.kill, (process, signal.SIGKILL))
        timer.start()
        code = self._ask({"wait": process})
        timer.cancel()
        texts = [(folder / name).read_text() for name in ("out", "log")]
        return Finished(code, *texts, folder)

    @contextlib.contextmanager
    def serving(
        self, addresses: Sequence[str], *, cores: int, **environment: str
    ) -> Iterator[pathlib.Path]:
        """Serves a TPU with a host at each HOST:PORT; yields the folder of its log.

        Args:
          addresses: of the hosts, all in one process, whose XLA adds up over all cores.
          cores: of each host.
          **environment: of the process.
        """
        environment |= {
            "FAKE_TPU_JIT": "XLA_CPU_JIT",
            "FAKE_TPU_HOSTS": f"{len(addresses)}",
        }
        process, folder = self._start("worker", addresses, cores, **environment)
        try:
            yield folder
        finally:
            os.kill(process, signal.SIGKILL)
            self._ask({"wait": process})

    def close(self) -> None:
        """Ends the launcher."""
        self._launcher.stdin.close()
        self._launcher.wait()

    def _start(
        self, module: str, arguments: Sequence[str], cores: int, **environment: str
    ) -> tuple[int, pathlib.Path]:
        folder = self._folder / f"{self._num_started}"
        self._num_started += 1
        folder.mkdir()
        (folder / "log.jsonl").touch()
        if cores:
            environment |= {
                "FAKE_TPU_PLUGIN": str(self._plugin),
                "FAKE_TPU_CORES": str(cores),
                "FAKE_TPU_FOLDER": str(folder),
            }
        request = {
            "start": module,
            "arguments": arguments,
            "environment": self._environment | environment,
            "folder": str(folder),
        }
        return self._ask(request), folder

    def _ask(self, request: dict[str, Any]) -> int:
        self._launcher.stdin.write(json.dumps(request) + "\n")
        answer = self._launcher.stdout.readline()
        assert answer, f"the launcher has ended: exit code {self._launcher.wait()}"
        return int(answer)
