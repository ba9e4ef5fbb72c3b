"""Ensures one writer per folder: by a lock on a disk, by a lease in a bucket."""

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

HEARTBEAT_SECONDS = 30.0
# A lease that was not renewed for this many heartbeats has expired.
_HEARTBEATS_TO_EXPIRE = 5
_POLL_SECONDS = 5.0
_NAME = ".writer"


@contextlib.contextmanager
def only_writer(
    folder: str,
    *,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
    machine: str | None = None,
) -> Iterator[None]:
    """Reserves a folder for this process.

    A process that died does not keep its folder: the operating system unlocks a local
    folder; a lease in a bucket is void at once for processes of the same machine, and
    for others when it expires.

    Args:
      folder: path of the folder. A local one is created.
      heartbeat_seconds: interval at which a lease is renewed. It expires after five.
      machine: identifies this machine in a lease. None: host name, boot and container.

    Raises:
      UserError: another process writes to the folder.
    """
    if gcs.is_remote(folder):
        reserved = _leased(folder, heartbeat_seconds, machine or _machine())
    else:
        reserved = _locked(folder)
    with reserved:
        yield


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    os.makedirs(folder, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(folder) from None
    else:
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _leased(folder: str, heartbeat_seconds: float, machine: str) -> Iterator[None]:
    from google.api_core.exceptions import PreconditionFailed

    path = files.join(folder, _NAME)
    with gcs.translate_errors(path):
        generation = _wait_until_free(folder, path, heartbeat_seconds, machine)
        lease = _Lease(path, generation, machine)
        try:
            lease.write()
        except PreconditionFailed:
            raise _in_use(folder) from None
    finished = threading.Event()
    thread = threading.Thread(
        target=lease.renew_until, args=(finished, heartbeat_seconds), daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
        lease.remove()


class _Lease:
    """An object in a bucket that names its writer.

    Args:
      path: path of the object.
      generation: generation of the expired lease that it replaces; 0: none.
      machine: identifies this machine.
    """

    def __init__(self, path: str, generation: int, machine: str):
        self._path = path
        self._generation = generation
        unique = os.urandom(4).hex()
        self._holder = f"process {os.getpid()} on {machine}, {unique}"

    def write(self) -> None:
        """Writes or renews the lease.

        Raises:
          PreconditionFailed: another process has written it.
        """
        from google.api_core.exceptions import PreconditionFailed

        blob = gcs.blob(self._path)
        try:
            blob.upload_from_string(
                self._holder, if_generation_match=self._generation, retry=gcs.retry()
            )
        except PreconditionFailed:
            # If the response to our own write was lost, its retry fails here.
            blob = gcs.blob(self._path)
            blob.reload()
            if gcs.blob(self._path).download_as_text() != self._holder:
                raise
        self._generation = int(blob.generation)

    def renew_until(self, finished: threading.Event, heartbeat_seconds: float) -> None:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        while not finished.wait(heartbeat_seconds):
            try:
                self.write()
            except (PreconditionFailed, NotFound):
                # Further writes would damage the other writer's work.
                logging.error("%s is held by another writer: this one ends", self._path)
                logging.flush()
                os._exit(1)
            except _failures() as error:  # the next heartbeat tries again
                name = type(error).__name__
                logging.warning("%s could not be renewed: %s", self._path, name)

    def remove(self) -> None:
        blob = gcs.blob(self._path)
        try:
            gcs.delete(blob, if_generation_match=self._generation)
        # Raising here would hide the exception that ended the work.
        except _failures() as error:
            name = type(error).__name__
            logging.warning("%s could not be removed: %s", self._path, name)


def _wait_until_free(
    folder: str, path: str, heartbeat_seconds: float, machine: str
) -> int:
    """Waits until a lease is free or expired.

    A dead machine leaves its lease, whose age grows until it expires. A lease that is
    renewed meanwhile belongs to a live writer.

    Returns:
      The generation of the lease that may be replaced; 0: there is no lease.

    Raises:
      UserError: the writer is alive.
    """
    from google.api_core.exceptions import NotFound

    first_generation = None
    while True:
        try:
            blob = gcs.blob(path)
            blob.reload()
            # A new handle: this one is bound to the generation that it has seen.
            holder = gcs.blob(path).download_as_text()
        except NotFound:
            return 0
        now = datetime.datetime.now(datetime.timezone.utc)
        age_seconds = (now - blob.updated).total_seconds()
        process = _process_on(machine, holder)
        is_alive = process is not None and _is_alive(process)
        is_dead = process is not None and not is_alive
        if is_dead or age_seconds >= _HEARTBEATS_TO_EXPIRE * heartbeat_seconds:
            return int(blob.generation)
        first_generation = first_generation or blob.generation
        if is_alive or blob.generation != first_generation:
            raise _in_use(folder, f" ({holder})")
        logging.log_first_n(
            logging.WARNING,
            "%s is held by %s, silent for %.0f s: waiting until it ends or renews",
            1,
            folder,
            holder,
            age_seconds,
        )
        time.sleep(min(_POLL_SECONDS, heartbeat_seconds / 2))


def _failures() -> tuple[type[Exception], ...]:
    """Returns the exceptions of a failed request; lost connections are OSErrors."""
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    return GoogleAPIError, GoogleAuthError, OSError


def _machine() -> str:
    """Returns an identifier of this machine or container.

    A process id has the same meaning wherever the identifier is the same.
    """
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id") as stream:
            name += f" {stream.read(8)}"
        name += f" {os.stat('/proc/self/ns/pid').st_ino}"
    return name


def _process_on(machine: str, holder: str) -> int | None:
    """Returns the process id in a lease of this machine; None: of another machine."""
    match = re.fullmatch(r"process (\d+) on (.*), \w+", holder)
    return int(match[1]) if match and match[2] == machine else None


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's process
    return True


def _in_use(folder: str, holder: str = "") -> UserError:
    return UserError(
        f"{folder} must have one writer. Another process writes there{holder}. Wait "
        "until it has ended, or use another folder."
    )
