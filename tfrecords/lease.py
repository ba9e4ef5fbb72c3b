"""One writer a folder: a lock on this machine, a lease in a bucket."""

import contextlib
import datetime
import fcntl
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from absl import logging

from tfrecords import gcs, storage
from tfrecords.gcs import StorageError

if TYPE_CHECKING:
    from google.cloud.storage import Blob

# A writer in a bucket says that it is alive; one that is silent for longer is dead.
_HEARTBEAT_SECONDS = 30
_LEASE_SECONDS = 5 * _HEARTBEAT_SECONDS
_LOOK_SECONDS = 5


@contextlib.contextmanager
def only_writer(folder: str) -> Iterator[None]:
    """Holds a folder for this process.

    Raises:
      StorageError: another process holds it. One that died does not: the operating
        system releases a local folder; a lease in a bucket ends at once for this
        machine. Others wait until it is renewed, or 150 s old.
    """
    hold = _leased if gcs.is_remote(folder) else _locked
    with hold(folder):
        yield


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    os.makedirs(folder, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(folder, "") from None
    else:
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _leased(folder: str) -> Iterator[None]:
    from google.api_core.exceptions import PreconditionFailed

    path = f"{folder.rstrip('/')}/.writer"
    blob = gcs.blob(path)
    with gcs.clear_errors(path):
        generation = _wait_until_free(folder, path)
        holder = f"process {os.getpid()} on {socket.gethostname()}, "
        holder += os.urandom(4).hex()
        try:
            _hold(path, blob, holder, generation)
        except PreconditionFailed:
            raise _in_use(folder, "") from None
    finished = threading.Event()
    thread = threading.Thread(
        target=_renew, args=(path, blob, holder, finished), daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
        gcs.delete(blob)


def _wait_until_free(folder: str, path: str) -> int:
    """Returns the generation of the lease that may be replaced; 0: there is none.

    A machine that was taken away leaves its lease, which then only grows older. A lease
    that is renewed meanwhile is held by somebody.
    """
    from google.api_core.exceptions import NotFound

    first = None
    while True:
        try:
            blob = gcs.blob(path)  # a new one: it insists on what it saw first
            blob.reload()
            holder = gcs.blob(path).download_as_text()
        except NotFound:
            return 0
        now = datetime.datetime.now(datetime.timezone.utc)
        age = (now - blob.updated).total_seconds()
        process = _process_here(holder)
        lives = process is not None and _lives(process)
        if age >= _LEASE_SECONDS or (process is not None and not lives):
            return int(blob.generation)
        first = first or blob.generation
        if lives or blob.generation != first:
            raise _in_use(folder, f" ({holder})")
        logging.log_first_n(
            logging.WARNING,
            "%s is held by %s, silent for %.0f s: waiting until it ends or speaks",
            1,
            folder,
            holder,
            age,
        )
        time.sleep(_LOOK_SECONDS)


def _hold(path: str, blob: "Blob", holder: str, generation: int) -> None:
    """Writes the lease; raises PreconditionFailed where somebody else has."""
    from google.api_core.exceptions import PreconditionFailed

    try:
        blob.upload_from_string(
            holder, if_generation_match=generation, retry=gcs.retry()
        )
    except PreconditionFailed:
        # The answer to our own write may have been lost, and the write repeated.
        if storage.read(path).decode() != holder:
            raise
        blob.reload()


def _renew(path: str, blob: "Blob", holder: str, finished: threading.Event) -> None:
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    while not finished.wait(_HEARTBEAT_SECONDS):
        try:
            _hold(path, blob, holder, int(blob.generation))
        # The next heartbeat tries again. Broken connections are OSErrors.
        except (GoogleAPIError, GoogleAuthError, OSError) as error:
            logging.warning("%s could not be renewed: %s", path, error)


def _process_here(holder: str) -> int | None:
    """Returns the process of this machine that a lease names, if it does."""
    found = re.fullmatch(r"process (\d+) on (.*), \w+", holder)
    if not found or found[2] != socket.gethostname():
        return None
    return int(found[1])


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is another user's
    return True


def _in_use(folder: str, who: str) -> StorageError:
    return StorageError(
        f"{folder} must have one writer. Another process writes there{who}. Wait until "
        "it has ended, or give another folder."
    )
