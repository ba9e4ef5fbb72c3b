"""Restarts the training until it is done: `python -m trainer.forever …`.

For TPUs that can be preempted at any time. Takes the flags of `trainer.train` and
starts it; starts it again after a preemption, the loss of a TPU, machine or bucket, or
a signal that killed it. Ends when the training is done (0), when the first start
reports a user's mistake (2), at a fault (1), and when many starts in a row have saved
no new step (1).
"""

import contextlib
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from absl import flags

from configs import cli
from configs.errors import TryAgainError

_MAX_STARTS_WITHOUT_PROGRESS = 20
# Before another start; doubled each time that a start has saved no new step.
_WAIT_SECONDS = 5.0
_LONGEST_WAIT_SECONDS = 300.0


def keep_training(arguments: Sequence[str]) -> int:
    """Starts the training until it is done.

    Args:
      arguments: flags of `trainer.train`.

    Returns:
      The exit code of the last start. 75 after SIGTERM, which is passed on to the
      training, so that it saves.
    """
    workdir = _workdir(arguments)
    terminated = threading.Event()
    child: subprocess.Popen | None = None

    def terminate(*_: Any) -> None:
        terminated.set()
        if child:
            child.terminate()

    signal.signal(signal.SIGTERM, terminate)
    saved, num_vain, started = _saved_step(workdir), 0, False
    while True:
        child = subprocess.Popen([sys.executable, "-m", "trainer.train", *arguments])
        if terminated.is_set():  # during the start
            child.terminate()
        code = child.wait()
        # A refusal of the first start is a mistake; later, the TPU is not back yet.
        again = code < 0 or code == TryAgainError.exit_code or (code == 2 and started)
        if terminated.is_set() or not again:
            return code if code >= 0 else 128 - code
        started = True
        before = saved
        with contextlib.suppress(TryAgainError):  # the next start reports it
            saved = _saved_step(workdir)
        num_vain = 0 if saved > before else num_vain + 1
        if num_vain == _MAX_STARTS_WITHOUT_PROGRESS:
            _say(f"error: The last {num_vain} starts have saved nothing. See above.")
            return 1
        seconds = min(_WAIT_SECONDS * 2**num_vain, _LONGEST_WAIT_SECONDS)
        how = f"was killed by signal {-code}" if code < 0 else "was stopped"
        _say(f"The training {how}, with step {saved} saved. Again in {seconds:g} s.")
        if terminated.wait(seconds):
            return TryAgainError.exit_code


def _workdir(arguments: Sequence[str]) -> str:
    known = flags.FlagValues()
    cli.define_path("workdir", "folder of the run", known)
    with contextlib.suppress(flags.Error):  # the training reports it
        known(["forever", *arguments], known_only=True)
    return known.workdir


def _saved_step(workdir: str) -> int:
    """Returns the step of the newest checkpoint; 0: there is no checkpoint."""
    if not workdir:
        return 0

    from tfrecords.storage import files  # here, so that `--help` does not wait for it
    from trainer.run_dir import layout

    paths = files.expand(files.join(workdir, layout.CHECKPOINTS))
    record = re.compile(r".*/step-(\d+)/checkpoint\.json")
    steps = [int(match[1]) for path in paths if (match := record.fullmatch(path))]
    return max(steps, default=0)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def run() -> None:
    """Runs the program as a command."""
    cli.guard(lambda: sys.exit(keep_training(sys.argv[1:])))


if __name__ == "__main__":
    run()
