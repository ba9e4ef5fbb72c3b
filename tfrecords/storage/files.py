"""Reads and writes files on a disk or in a bucket (`gs://…`), without TensorFlow.

A file that is written appears complete under its name or not at all.
"""

import base64
import contextlib
import errno
import hashlib
import io
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import google_crc32c

from configs.errors import RunError, UserError
from tfrecords.storage import gcs, globs
from tfrecords.storage.gcs import is_remote

_BLOCK_BYTES = 8 << 20

expand = globs.expand


def join(folder: str, name: str) -> str:
    """Returns the path of a file in a folder, which may end in a slash."""
    return f"{folder.rstrip('/')}/{name}"


def stat(path: str) -> tuple[int, str]:
    """Returns size in bytes and a version that changes when the file is written."""
    if is_remote(path):
        blob = gcs.existing_blob(path)
        return int(blob.size or 0), str(blob.generation)
    status = os.stat(path)
    return status.st_size, f"{status.st_mtime_ns}-{status.st_ino}"


def open_read(path: str) -> BinaryIO:
    """Opens a file for reading and seeking."""
    if not is_remote(path):
        return open(path, "rb")
    from google.cloud.storage.fileio import BlobReader

    class Reader(BlobReader):
        def read(self, size: int = -1) -> bytes:
            with gcs.translate_errors(path):
                return bytes(super().read(size))

    reader: Any = Reader(gcs.existing_blob(path), chunk_size=_BLOCK_BYTES)
    return io.BufferedReader(reader, _BLOCK_BYTES)


def exists(path: str) -> bool:
    """Returns whether a file, or a folder on a disk, exists."""
    if not is_remote(path):
        return os.path.exists(path)
    with gcs.translate_errors(path):
        return bool(gcs.blob(path).exists())


def read(path: str) -> bytes:
    """Returns the contents of a file; those of a bucket are checked by checksum."""
    if not is_remote(path):
        return pathlib.Path(path).read_bytes()
    with gcs.translate_errors(path):
        return gcs.blob(path).download_as_bytes(checksum="crc32c")


def write(path: str, data: bytes) -> None:
    """Writes a file."""
    with writing(path) as name, open(name, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def append(path: str, data: bytes) -> None:
    """Appends to a file; a bucket cannot append, so there the file is rewritten."""
    if is_remote(path):
        write(path, (read(path) if exists(path) else b"") + data)
        return
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with _naming_full_disk(path), open(path, "ab") as stream:
        stream.write(data)


def download(path: str, name: str) -> None:
    """Copies a file of a bucket to a file on this disk, and checks its checksum."""
    with gcs.translate_errors(path):
        gcs.blob(path).download_to_filename(name, checksum="crc32c")


@contextlib.contextmanager
def writing(path: str) -> Iterator[str]:
    """Yields the name of a local file to write, which becomes `path` at the end.

    Each process has a name of its own, so writers of the same path do not interfere.
    If the block raises, `path` is left unchanged.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            name = os.path.join(folder, os.path.basename(path))
            with _naming_full_disk(folder):
                yield name
            _upload(name, path)
        return
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    partial = f"{path}.{os.urandom(4).hex()}.partial"
    try:
        with _naming_full_disk(path):
            yield partial
        os.replace(partial, path)
    finally:
        pathlib.Path(partial).unlink(missing_ok=True)


@contextlib.contextmanager
def _naming_full_disk(path: str) -> Iterator[None]:
    """Names the path in the error of a full disk, which `write` raises without it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
            error.filename = path
        raise


def _upload(name: str, path: str) -> None:
    """Uploads a local file, unless another program writes `path` meanwhile."""
    from google.api_core.exceptions import NotFound, PreconditionFailed

    blob = gcs.blob(path)
    try:
        with gcs.translate_errors(path):
            with contextlib.suppress(NotFound):
                blob.reload()
            blob.upload_from_filename(
                name,
                checksum="crc32c",
                if_generation_match=blob.generation or 0,
                retry=gcs.retry(),
            )
    except PreconditionFailed:
        # If the response to our own write was lost, its retry fails here.
        if checksum(path) != checksum(name):
            raise UserError(
                f"{path} was written by another program meanwhile. A dataset and a run "
                "must have one writer: wait for the other, or use another folder."
            ) from None


def sizes_and_versions(folder: str) -> dict[str, tuple[int, str]]:
    """Returns size and version of each file in a folder, without subfolders.

    Args:
      folder: path of the folder; if it does not exist, the result is empty.

    Returns:
      name -> (bytes, version); the version changes when the file is written.

    Raises:
      UserError: the bucket does not exist or is not readable.
    """
    if not is_remote(folder):
        files = [p for p in pathlib.Path(folder).glob("*") if p.is_file()]
        # Not the inode: some network file systems renumber their files.
        return {p.name: (p.stat().st_size, str(p.stat().st_mtime_ns)) for p in files}
    bucket, prefix = gcs.split(folder.rstrip("/") + "/")
    with gcs.translate_errors(folder):
        blobs = list(gcs.client().list_blobs(bucket, prefix=prefix, delimiter="/"))
    return {
        blob.name.removeprefix(prefix): (int(blob.size or 0), str(blob.generation))
        for blob in blobs
    }


def check_free_space(folder: str, num_bytes: int) -> None:
    """Checks the free space of a folder's disk, and creates the folder.

    For a folder in a bucket, it checks the temporary folder, which holds uploads.

    Raises:
      RunError: fewer than `num_bytes` bytes are free.
    """
    local = tempfile.gettempdir() if is_remote(folder) else folder
    os.makedirs(local, exist_ok=True)
    free = shutil.disk_usage(local).free
    if free < num_bytes:
        raise RunError(
            f"The disk is full: {local} must have {num_bytes / 1e6:,.1f} MB free for "
            f"what goes to {folder}. It has {free / 1e6:,.1f} MB. Free some space"
            + (", or set TMPDIR to another disk." if is_remote(folder) else ".")
        )


def checksum(path: str) -> str:
    """Returns size and CRC32C of a file; a bucket gives both without a download."""
    if is_remote(path):
        blob = gcs.existing_blob(path)
        return f"{blob.size}-{blob.crc32c}"
    crc = google_crc32c.Checksum()
    with open(path, "rb") as stream:
        size = sum(len(block) for block in crc.consume(stream, _BLOCK_BYTES))
    return f"{size}-{base64.b64encode(crc.digest()).decode()}"


def local_copy(path: str, version: str) -> str:
    """Returns a local file with the contents of `path`, which may be `path` itself.

    The processes of a machine share the copies. They stay in the temporary folder until
    `remove_copies`.

    Args:
      path: path of the file.
      version: identifies the contents, as in the result of `stat`.
    """
    if not is_remote(path):
        return path
    folder, name = path.rsplit("/", 1)
    copy = os.path.join(_copies_folder(folder), f"{version}-{name}")
    if not os.path.exists(copy):
        with writing(copy) as partial:
            download(path, partial)
    return copy


def remove_copies(folder: str) -> None:
    """Removes the local copies of a folder's files."""
    shutil.rmtree(_copies_folder(folder), ignore_errors=True)


def _copies_folder(folder: str) -> str:
    digest = hashlib.sha256(folder.encode()).hexdigest()[:16]
    root = os.path.join(tempfile.gettempdir(), f"gpt2-tpu-{os.getuid()}")
    return os.path.join(root, digest)


def move(source: str, target: str) -> None:
    """Moves a file to another path on the same disk or in any bucket."""
    if not is_remote(source):
        os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
        os.replace(source, target)
        return
    blob = gcs.existing_blob(source)
    with gcs.translate_errors(target):
        bucket, name = gcs.split(target)
        blob.bucket.copy_blob(
            blob, gcs.client().bucket(bucket), name, retry=gcs.retry()
        )
    gcs.delete(blob)


def remove(path: str) -> None:
    """Removes a file or a folder, if it exists."""
    if not is_remote(path):
        if os.path.isdir(path):
            shutil.rmtree(path)
        else:
            pathlib.Path(path).unlink(missing_ok=True)
        return
    bucket, name = gcs.split(path.rstrip("/"))
    with gcs.translate_errors(path):
        listed = gcs.client().list_blobs(bucket, prefix=name)
        for object_name in [blob.name for blob in listed]:
            if object_name == name or object_name.startswith(f"{name}/"):
                # Without a generation: versioned buckets then keep the last version.
                gcs.delete(gcs.blob(f"gs://{bucket}/{object_name}"))
