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

from absl import logging

from configs.errors import UserError
from tfrecords.storage import files, gcs

# A writer in a bucket says that it is alive; one that is silent for longer is dead.
_HEARTBEAT_SECONDS = 30
_LEASE_SECONDS = 5 * _HEARTBEAT_SECONDS
_LOOK_SECONDS = 5
_NAME = ".writer"


@contextlib.contextmanager
def only_writer(folder: str) -> Iterator[None]:
    """Holds a folder for this process.

    Raises:
      UserError: another process holds it. One that died does not: the operating
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

    path = files.join(folder, _NAME)
    with gcs.clear_errors(path):
        lease = _Lease(path, _wait_until_free(folder, path))
        try:
            lease.hold()
        except PreconditionFailed:
            raise _in_use(folder, "") from None
    finished = threading.Event()
    thread = threading.Thread(target=lease.renew_until, args=(finished,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
        lease.give_back()


class _Lease:
    """An object that names its writer.

    Args:
      path: of the object.
      generation: of the lease that it replaces; 0: there is none.
    """

    def __init__(self, path: str, generation: int):
        self._path = path
        self._generation = generation
        mark = os.urandom(4).hex()
        self._holder = f"process {os.getpid()} on {_machine()}, {mark}"

    def hold(self) -> None:
        """Writes it; raises PreconditionFailed where somebody else has."""
        from google.api_core.exceptions import PreconditionFailed

        blob = gcs.blob(self._path)
        try:
            blob.upload_from_string(
                self._holder, if_generation_match=self._generation, retry=gcs.retry()
            )
        except PreconditionFailed:
            # The answer to our own write may have been lost, and the write repeated.
            blob = gcs.blob(self._path)
            blob.reload()
            if gcs.blob(self._path).download_as_text() != self._holder:
                raise
        self._generation = int(blob.generation)

    def renew_until(self, finished: threading.Event) -> None:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        while not finished.wait(_HEARTBEAT_SECONDS):
            try:
                self.hold()
            except (PreconditionFailed, NotFound):
                # To write on would damage what the other one does.
                logging.error("%s is held by another writer: this one ends", self._path)
                logging.flush()
                os._exit(1)
            except _failures() as error:  # the next heartbeat tries again
                what = type(error).__name__
                logging.warning("%s could not be renewed: %s", self._path, what)

    def give_back(self) -> None:
        blob = gcs.blob(self._path)
        try:
            gcs.delete(blob, if_generation_match=self._generation)
        # What ended the work says more than that its lease stays for a while.
        except _failures() as error:
            what = type(error).__name__
            logging.warning("%s could not be removed: %s", self._path, what)


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


def _failures() -> tuple[type[Exception], ...]:
    """Returns all that a request can end with; broken connections are OSErrors."""
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    return GoogleAPIError, GoogleAuthError, OSError


def _machine() -> str:
    """Returns what tells this machine, or container, from any other that has its name.

    Where it is the same, numbers of processes mean the same.
    """
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id") as stream:
            name += f" {stream.read(8)}"
        name += f" {os.stat('/proc/self/ns/pid').st_ino}"
    return name


def _process_here(holder: str) -> int | None:
    """Returns the process of this machine that a lease names, if it does."""
    found = re.fullmatch(r"process (\d+) on (.*), \w+", holder)
    return int(found[1]) if found and found[2] == _machine() else None


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is another user's
    return True


def _in_use(folder: str, who: str) -> UserError:
    return UserError(
        f"{folder} must have one writer. Another process writes there{who}. Wait until "
        "it has ended, or give another folder."
    )
