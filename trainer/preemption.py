"""Notices that this machine is about to be taken away, in time to save."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from trainer import cloud

# Preemption leaves 30 seconds.
_POLL_SECONDS = 5
_EVENTS = {
    "preempted": "TRUE",
    "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE",
}


class PreemptedError(RuntimeError):
    """The run has to stop; the same command continues it."""

    exit_code = 75  # EX_TEMPFAIL: try again


class Notice:
    """Why the run has to stop: `reason`, empty as long as it need not."""

    reason = ""

    def check(self) -> None:
        """Raises PreemptedError where there is a reason."""
        if self.reason:
            raise PreemptedError(
                f"Stopped by {self.reason}; all steps are saved. The same command "
                "continues."
            )


@contextlib.contextmanager
def watched() -> Iterator[Notice]:
    """Yields a notice, which SIGTERM or Cloud's metadata server can give at any time.

    A second SIGTERM changes nothing: the save goes on.
    """
    notice, ended = Notice(), threading.Event()

    def terminate(*_: object) -> None:
        notice.reason = "SIGTERM"

    previous = signal.signal(signal.SIGTERM, terminate)
    thread = threading.Thread(target=_poll, args=(notice, ended), daemon=True)
    thread.start()
    try:
        yield notice
    finally:
        ended.set()
        signal.signal(signal.SIGTERM, previous)


def _poll(notice: Notice, ended: threading.Event) -> None:
    """Asks the metadata server until the end; only once where there is none."""
    if not cloud.metadata("preempted"):
        return
    while not ended.is_set():
        for event, value in _EVENTS.items():
            if cloud.metadata(event) == value:
                notice.reason = f"{event} {value} of the metadata server"
                return
        ended.wait(_POLL_SECONDS)
