"""Notices that this machine is about to be taken away, in time to save."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import tensorflow as tf

from configs.errors import TryAgainError
from tfrecords.tensorflow_errors import root_cause
from trainer.runtime import cloud_metadata
from trainer.runtime.cluster import Cluster

# Preemption leaves 30 seconds.
_POLL_SECONDS = 5
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.DeadlineExceededError,
)
_EVENTS = {
    "preempted": "TRUE",
    "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE",
}


class PreemptedError(RuntimeError):
    """The run has to stop; the same command continues it."""

    exit_code = 75  # EX_TEMPFAIL: try again


class Notice:
    """Why the run has to stop: `reason`, empty as long as it need not.

    Args:
      cluster: whose machines stop together.
    """

    def __init__(self, cluster: Cluster):
        self.reason = ""
        self._cluster = cluster

    def check(self) -> None:
        """Raises PreemptedError where any machine has a reason."""
        if self._cluster.any(bool(self.reason)):
            raise PreemptedError(
                f"Stopped by {self.reason or 'another machine'}; all steps are saved. "
                "The same command continues."
            )


@contextlib.contextmanager
def naming_loss() -> Iterator[None]:
    """Says that what the run needs is gone, where TensorFlow reports that.

    To connect again within the process is not tried: what it holds of the TPU or of the
    other machines is void. A new process continues from the last checkpoint.
    """
    try:
        yield
    except tf.errors.OpError as error:
        # A machine that came back meanwhile is another one.
        restarted = isinstance(error, tf.errors.FailedPreconditionError)
        if not isinstance(error, _LOST) and not (
            restarted and "TF_CONFIG" in os.environ
        ):
            raise
        raise TryAgainError(
            "The TPU, another machine of this run, or a bucket does not answer any "
            f"more: {root_cause(error)}\nThe same command continues from the last "
            "checkpoint, when they are back; of several machines, start all again."
        ) from error


@contextlib.contextmanager
def watched(cluster: Cluster) -> Iterator[Notice]:
    """Yields a notice, which SIGTERM or Cloud's metadata server can give at any time.

    A second SIGTERM changes nothing: the save goes on.
    """
    notice, ended = Notice(cluster), threading.Event()

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
    if not cloud_metadata.metadata("preempted"):
        return
    while not ended.is_set():
        for event, value in _EVENTS.items():
            if cloud_metadata.metadata(event) == value:
                notice.reason = f"{event} {value} of the metadata server"
                return
        ended.wait(_POLL_SECONDS)
