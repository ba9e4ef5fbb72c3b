"""Trains to the end, however often it is stopped: `python -m trainer.forever …`.

For TPUs that can be taken away at any time. Takes the flags of `trainer.train`, which
it starts, and starts again where the program was stopped by preemption, by what it
needs being gone, or by a signal that killed it. It ends when that is done (0), when the
first start finds a mistake (2), at a fault that another start would not mend (1), and
when many starts in a row have saved nothing new.
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
from tfrecords.storage import files
from trainer.run_dir import layout

_STOPPED = 75  # `trainer.runtime.preemption.PreemptedError`
_MAX_STARTS_WITHOUT_PROGRESS = 20
# Before another start; doubled where the last one saved nothing new.
_WAIT_SECONDS = 5.0
_LONGEST_WAIT_SECONDS = 300.0


def keep_training(arguments: Sequence[str]) -> int:
    """Starts the training until it is done.

    Args:
      arguments: flags of `trainer.train`.

    Returns:
      The exit code of the last start. 75 where this program was told to end itself: it
      passes SIGTERM on, and the training saves.
    """
    workdir = _workdir(arguments)
    told_to_end = threading.Event()
    child: subprocess.Popen | None = None

    def end(*_: Any) -> None:
        told_to_end.set()
        if child:
            child.terminate()

    signal.signal(signal.SIGTERM, end)
    saved, in_vain, started = _saved_step(workdir), 0, False
    while True:
        child = subprocess.Popen([sys.executable, "-m", "trainer.train", *arguments])
        if told_to_end.is_set():  # while it was started
            child.terminate()
        code = child.wait()
        # What a first start refuses is a mistake. Later, the TPU is not back yet.
        again = code < 0 or code == _STOPPED or (code == 2 and started)
        if told_to_end.is_set() or not again:
            return code if code >= 0 else 128 - code
        started = True
        before = saved
        with contextlib.suppress(TryAgainError):  # then the next start tells
            saved = _saved_step(workdir)
        in_vain = 0 if saved > before else in_vain + 1
        if in_vain == _MAX_STARTS_WITHOUT_PROGRESS:
            _say(f"error: The last {in_vain} starts have saved nothing. See above.")
            return 1
        seconds = min(_WAIT_SECONDS * 2**in_vain, _LONGEST_WAIT_SECONDS)
        how = f"was killed by signal {-code}" if code < 0 else "was stopped"
        _say(f"The training {how}, with step {saved} saved. Again in {seconds:g} s.")
        if told_to_end.wait(seconds):
            return _STOPPED


def _workdir(arguments: Sequence[str]) -> str:
    known = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "folder of the run", flag_values=known)
    with contextlib.suppress(flags.Error):  # the training tells
        known(["forever", *arguments], known_only=True)
    return known.workdir


def _saved_step(workdir: str) -> int:
    """Returns the step of the newest checkpoint; 0 where there is none."""
    found = files.expand(files.join(workdir, layout.CHECKPOINTS)) if workdir else []
    record = re.compile(r".*/step-(\d+)/checkpoint\.json")
    steps = [int(match[1]) for path in found if (match := record.fullmatch(path))]
    return max(steps, default=0)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def run() -> None:
    cli.guard(lambda: sys.exit(keep_training(sys.argv[1:])))


if __name__ == "__main__":
    run()
