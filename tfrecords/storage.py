"""Files on this machine or in a bucket (`gs://…`), without TensorFlow.

What is written appears whole under its name or not at all. A bucket is reached through
google-cloud-storage, with the credentials of the environment.
"""

import base64
import contextlib
import fcntl
import functools
import glob
import io
import os
import pathlib
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import google_crc32c
from absl import logging

if TYPE_CHECKING:
    from google.cloud.storage import Blob

_BLOCK_BYTES = 8 << 20
# A writer in a bucket says that it is alive; one that is silent for longer is dead.
_HEARTBEAT_SECONDS = 30
_LEASE_SECONDS = 5 * _HEARTBEAT_SECONDS


class StorageError(ValueError):
    """A file that cannot be reached; the message names it and what to do."""

    exit_code = 2


def is_remote(path: str) -> bool:
    return path.startswith("gs://")


def expand(name: str) -> list[str]:
    """Returns the files that a file name, a folder or a glob stands for, sorted."""
    if not is_remote(name):
        if os.path.isfile(name):
            return [name]
        if os.path.isdir(name):
            name = os.path.join(glob.escape(name), "**")
        return sorted(filter(os.path.isfile, glob.glob(name, recursive=True)))
    bucket, pattern = _split(name)
    fixed = re.split(r"[*?\[]", pattern)[0]
    with _clear_errors(name):
        found = [b.name for b in _client().list_blobs(bucket, prefix=fixed)]
    folder = pattern.rstrip("/") + "/" if pattern else ""
    chosen = [
        path
        for path in found
        # As on a disk, hidden files are not found, but read where they are named.
        if not path.endswith("/")
        and "/." not in "/" + path.removeprefix(fixed.rpartition("/")[0] + "/")
        and (path == pattern or path.startswith(folder) or _matches(path, pattern))
    ]
    return sorted(f"gs://{bucket}/{path}" for path in chosen)


def stat(path: str) -> tuple[int, str]:
    """Returns the size in bytes, and what changes when the file is written again."""
    if is_remote(path):
        blob = _existing(path)
        return int(blob.size or 0), str(blob.generation)
    status = os.stat(path)
    return status.st_size, f"{status.st_mtime_ns}-{status.st_ino}"


def open_read(path: str) -> BinaryIO:
    """Opens a file to read and seek in."""
    if not is_remote(path):
        return open(path, "rb")
    reader: Any = _existing(path).open("rb", chunk_size=_BLOCK_BYTES)
    return io.BufferedReader(reader, _BLOCK_BYTES)


def exists(path: str) -> bool:
    if not is_remote(path):
        return os.path.exists(path)
    with _clear_errors(path):
        return bool(_blob(path).exists())


def read(path: str) -> bytes:
    with open_read(path) as stream:
        return stream.read()


def write(path: str, data: bytes) -> None:
    with writing(path) as name, open(name, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


@contextlib.contextmanager
def writing(path: str) -> Iterator[str]:
    """Yields a file name to write to; what is there at the end appears as `path`.

    Two processes that write the same file do not meet.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            name = os.path.join(folder, os.path.basename(path))
            yield name
            _upload(name, path)
        return
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    partial = f"{path}.{os.getpid()}.partial"
    try:
        yield partial
        os.replace(partial, path)
    finally:
        pathlib.Path(partial).unlink(missing_ok=True)


def _upload(name: str, path: str) -> None:
    """Publishes a file; what another writes there meanwhile is not overwritten."""
    from google.api_core.exceptions import NotFound, PreconditionFailed

    blob = _blob(path)
    try:
        with _clear_errors(path):
            with contextlib.suppress(NotFound):
                blob.reload()
            blob.upload_from_filename(
                name,
                checksum="crc32c",
                if_generation_match=blob.generation or 0,
                retry=_retry(),
            )
    except PreconditionFailed:
        # The answer to our own write may have been lost, and the write repeated.
        if checksum(path) != checksum(name):
            raise StorageError(
                f"{path} was written by another program meanwhile. A dataset and a run "
                "must have one writer: wait for the other, or give another folder."
            ) from None


def _retry() -> Any:
    """Repeats whatever a bucket cannot do at the moment: all of it can be repeated."""
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY


def checksum(path: str) -> str:
    """Returns size and CRC32C of a file; of one in a bucket without reading it."""
    if is_remote(path):
        blob = _existing(path)
        return f"{blob.size}-{blob.crc32c}"
    crc, size = 0, 0
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            crc = google_crc32c.extend(crc, block)
            size += len(block)
    return f"{size}-{base64.b64encode(crc.to_bytes(4, 'big')).decode()}"


def local_copy(path: str, version: str) -> str:
    """Returns the file itself, or the name of a copy on this machine's disk.

    The processes of a machine share the copies, which stand in the temporary folder.

    Args:
      path: of the file.
      version: differs wherever the contents under a path of this name do.
    """
    if not is_remote(path):
        return path
    name = f"{version}-{os.path.basename(path)}"
    copy = os.path.join(tempfile.gettempdir(), "gpt2-tpu", name)
    if not os.path.exists(copy):
        with writing(copy) as partial, _clear_errors(path):
            _blob(path).download_to_filename(partial, checksum="crc32c")
    return copy


def move(source: str, target: str) -> None:
    """Gives a file another name; repeated after an interruption, it does the rest."""
    if not exists(source) and exists(target):
        return
    if not is_remote(source):
        os.replace(source, target)
        return
    blob = _existing(source)
    with _clear_errors(target):
        bucket, name = _split(target)
        blob.bucket.copy_blob(blob, _client().bucket(bucket), name, retry=_retry())
    _delete(blob)


def remove(path: str) -> None:
    """Removes a file or a folder, where there is one."""
    if not is_remote(path):
        if os.path.isdir(path):
            shutil.rmtree(path)
        else:
            pathlib.Path(path).unlink(missing_ok=True)
        return
    for name in expand(path):
        with _clear_errors(name):
            _delete(_blob(name))


def _delete(blob: "Blob") -> None:
    from google.api_core.exceptions import NotFound

    # Where the answer to a first attempt was lost, it is not there any more.
    with contextlib.suppress(NotFound):
        blob.delete(retry=_retry())


@contextlib.contextmanager
def only_writer(folder: str) -> Iterator[None]:
    """Holds a folder for this process.

    Raises:
      StorageError: another process holds it. One that died does not: the operating
        system releases a local folder; a lease in a bucket ends at once for this
        machine, and for others after 150 s.
    """
    hold = _leased if is_remote(folder) else _locked
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
    from google.api_core.exceptions import (
        GoogleAPIError,
        NotFound,
        PreconditionFailed,
    )
    from google.auth.exceptions import GoogleAuthError

    path = f"{folder.rstrip('/')}/.writer"
    mark = os.urandom(4).hex()
    holder = f"process {os.getpid()} on {socket.gethostname()}, {mark}"
    blob = _blob(path)
    generation = 0
    try:
        blob.reload()
    except NotFound:
        pass
    else:
        age, other = _server_age_seconds(blob), read(path).decode()
        if age < _LEASE_SECONDS and not _died_here(other):
            raise _in_use(folder, f" ({other}, {age:.0f} s ago)")
        generation = blob.generation
    finished = threading.Event()

    def hold(generation: int) -> None:
        try:
            blob.upload_from_string(
                holder, if_generation_match=generation, retry=_retry()
            )
        except PreconditionFailed:
            # The answer to our own write may have been lost, and the write repeated.
            if read(path).decode() != holder:
                raise
            blob.reload()

    def renew() -> None:
        while not finished.wait(_HEARTBEAT_SECONDS):
            try:
                hold(blob.generation)
            # The next heartbeat tries again. Broken connections are OSErrors.
            except (GoogleAPIError, GoogleAuthError, OSError) as error:
                logging.warning("%s could not be renewed: %s", path, error)

    try:
        with _clear_errors(path):
            hold(generation)
    except PreconditionFailed:
        raise _in_use(folder, "") from None
    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
        _delete(blob)


def _died_here(holder: str) -> bool:
    """Tells of a writer of this machine, by what its lease says, that it is no more."""
    found = re.fullmatch(r"process (\d+) on (.*), \w+", holder)
    if not found or found[2] != socket.gethostname():
        return False
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it lives, and is another user's
    return False


def _server_age_seconds(blob: "Blob") -> float:
    import datetime

    return (datetime.datetime.now(datetime.timezone.utc) - blob.updated).total_seconds()


def _in_use(folder: str, who: str) -> StorageError:
    return StorageError(
        f"{folder} must have one writer. Another process writes there{who}. Wait until "
        "it has ended, or give another folder."
    )


@functools.lru_cache(maxsize=1)
def _client() -> Any:
    from google.cloud import storage

    return storage.Client()


def _split(path: str) -> tuple[str, str]:
    bucket, _, name = path.removeprefix("gs://").partition("/")
    return bucket, name


def _blob(path: str) -> "Blob":
    bucket, name = _split(path)
    with _clear_errors(path):
        return _client().bucket(bucket).blob(name)


def _existing(path: str) -> "Blob":
    blob = _blob(path)
    with _clear_errors(path):
        blob.reload()
    return blob


def _matches(path: str, pattern: str) -> bool:
    """As `glob.glob` does it: `**` crosses folders, `*` does not."""
    regex = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*\*", ".*")
    regex = regex.replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    return re.fullmatch(regex, path) is not None


@contextlib.contextmanager
def _clear_errors(path: str) -> Iterator[None]:
    """Turns what the bucket refuses into one message, without any credential."""
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    try:
        yield
    except (exceptions.NotFound, exceptions.Forbidden, exceptions.Unauthorized) as e:
        raise StorageError(
            f"{path} must exist, and its bucket must let this account read and write. "
            f"The bucket answered {e.code} {type(e).__name__}. Correct the path, or "
            "give the account the role Storage Object Admin."
        ) from None
    except GoogleAuthError as error:
        raise StorageError(
            f"{path} needs credentials: {type(error).__name__}. Run `gcloud auth "
            "application-default login`, or use a machine with a service account."
        ) from None
