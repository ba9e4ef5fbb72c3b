"""Detects that this machine is about to be preempted, in time to save."""

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

# A preempted machine has 30 seconds left.
_POLL_SECONDS = 5
_UNAVAILABLE = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.DeadlineExceededError,
)
_EVENTS = {
    "preempted": "TRUE",
    "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE",
}


class PreemptedError(TryAgainError):
    """The run has to stop; the same command continues it."""


class Notice:
    """Holds why the run has to stop: `reason`, empty as long as it need not.

    Args:
      cluster: the machines, which stop together.
    """

    def __init__(self, cluster: Cluster):
        self.reason = ""
        self._cluster = cluster

    def check(self) -> None:
        """Raises PreemptedError on all machines where any has a reason to stop."""
        if self._cluster.any(bool(self.reason)):
            raise PreemptedError(
                f"Stopped by {self.reason or 'another machine'}; all steps are saved. "
                "The same command continues."
            )


@contextlib.contextmanager
def translate_unavailable_errors() -> Iterator[None]:
    """Raises TryAgainError where TensorFlow has lost a TPU, a machine or a bucket.

    The process does not reconnect: its handles to the TPU and the other machines are
    void. A new process continues from the last checkpoint.
    """
    try:
        yield
    except tf.errors.OpError as error:
        # A machine that was restarted does not know this run's variables.
        restarted = isinstance(error, tf.errors.FailedPreconditionError)
        if not isinstance(error, _UNAVAILABLE) and not (
            restarted and "TF_CONFIG" in os.environ
        ):
            raise
        raise TryAgainError(
            "The TPU, another machine of this run, or a bucket does not answer any "
            f"more: {root_cause(error)}\nThe same command continues from the last "
            "checkpoint when they are back; with several machines, restart all of them."
        ) from error


@contextlib.contextmanager
def watched(cluster: Cluster, poll_seconds: float = _POLL_SECONDS) -> Iterator[Notice]:
    """Yields a notice that SIGTERM or Cloud's metadata server may fill at any time.

    A second SIGTERM changes nothing: the save goes on.

    Args:
      cluster: whose machines stop together.
      poll_seconds: between two questions to the metadata server.
    """
    notice, ended = Notice(cluster), threading.Event()

    def terminate(*_: object) -> None:
        notice.reason = "SIGTERM"

    previous = signal.signal(signal.SIGTERM, terminate)
    thread = threading.Thread(
        target=_poll, args=(notice, ended, poll_seconds), daemon=True
    )
    thread.start()
    try:
        yield notice
    finally:
        ended.set()
        signal.signal(signal.SIGTERM, previous)


def _poll(notice: Notice, ended: threading.Event, poll_seconds: float) -> None:
    """Polls the metadata server until `ended`; once where no server answers."""
    if not cloud_metadata.metadata("preempted"):
        return
    while not ended.is_set():
        for event, value in _EVENTS.items():
            if cloud_metadata.metadata(event) == value:
                notice.reason = f"{event} {value} of the metadata server"
                return
        ended.wait(poll_seconds)
