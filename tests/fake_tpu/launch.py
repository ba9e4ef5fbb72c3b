"""Starts programs on TPU cores that are not there.

Runs in the environment of `make install-tpu`. Imports TensorFlow once, and forks for
each program, as `tests/programs.py` does. Reads requests from standard input, a JSON
object a line, and answers each with a line:

  {"start": MODULE, "arguments": […], "environment": {…}, "folder": …}  the process's id
  {"wait": ID}  its exit code

FAKE_TPU_PLUGIN of the environment is the compiled plugin; without it there is no TPU.
"""

import importlib
import json
import os
import sys
import traceback
from typing import Any

import tensorflow as tf
import tf_keras  # noqa: F401
import transformers.models.gpt2.modeling_tf_gpt2  # noqa: F401


def start(request: dict[str, Any]) -> None:
    """Runs a program in this process, to its end, and ends the process."""
    code: Any = 1
    try:
        run(request)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # libtpu would crash: its threads are not in a forked process


def run(request: dict[str, Any]) -> None:
    """Runs a program as its command does."""
    for number, name in ((1, "out"), (2, "log")):
        path = os.path.join(request["folder"], name)
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), number)
    os.environ.clear()
    os.environ.update(request["environment"])
    if plugin := os.environ.get("FAKE_TPU_PLUGIN"):
        tf.load_library(plugin)
    if os.environ.get("FAKE_TPU_BRIDGE") == "MLIR":
        tf.config.experimental.enable_mlir_bridge()
    module, arguments = request["start"], request["arguments"]
    if module == "worker":
        serve(*arguments)
    sys.argv = [module, *arguments]
    importlib.import_module(module).run()


def serve(*addresses: str) -> None:
    """Is the hosts of a remote TPU, each as `scripts/tpu_server.py`, until killed."""
    servers = [tf.distribute.Server({"worker": [a]}, "worker", 0) for a in addresses]
    servers[0].join()


def main() -> None:
    sys.path.insert(0, os.getcwd())  # the project, which the environment has a copy of
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        process = os.fork()
        if not process:
            sys.stdin = open(os.devnull)  # noqa: SIM115
            start(request)
        print(process, flush=True)


if __name__ == "__main__":
    main()
