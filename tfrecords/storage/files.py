"""Files on this machine or in a bucket (`gs://…`), without TensorFlow.

What is written appears whole under its name or not at all. A bucket is reached through
google-cloud-storage, with the credentials of the environment.
"""

import base64
import contextlib
import glob
import hashlib
import io
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import google_crc32c

from configs.errors import RunError, UserError
from tfrecords.storage import gcs
from tfrecords.storage.gcs import is_remote

_BLOCK_BYTES = 8 << 20


def join(folder: str, name: str) -> str:
    """Returns the path of a file in a folder, which may end in a slash."""
    return f"{folder.rstrip('/')}/{name}"


def expand(name: str) -> list[str]:
    """Returns the files that a file name, a folder or a glob stands for, sorted."""
    if not is_remote(name):
        if os.path.isfile(name):
            return [name]
        if os.path.isdir(name):
            name = os.path.join(glob.escape(name), "**")
        return sorted(filter(os.path.isfile, glob.glob(name, recursive=True)))
    bucket, pattern = gcs.split(name)
    fixed = re.split(r"[*?\[]", pattern)[0]
    with gcs.clear_errors(name):
        found = [b.name for b in gcs.client().list_blobs(bucket, prefix=fixed)]
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
        blob = gcs.existing(path)
        return int(blob.size or 0), str(blob.generation)
    status = os.stat(path)
    return status.st_size, f"{status.st_mtime_ns}-{status.st_ino}"


def open_read(path: str) -> BinaryIO:
    """Opens a file to read and seek in."""
    if not is_remote(path):
        return open(path, "rb")
    from google.cloud.storage.fileio import BlobReader

    class Reader(BlobReader):
        def read(self, size: int = -1) -> bytes:
            with gcs.clear_errors(path):
                return bytes(super().read(size))

    reader: Any = Reader(gcs.existing(path), chunk_size=_BLOCK_BYTES)
    return io.BufferedReader(reader, _BLOCK_BYTES)


def exists(path: str) -> bool:
    if not is_remote(path):
        return os.path.exists(path)
    with gcs.clear_errors(path):
        return bool(gcs.blob(path).exists())


def read(path: str) -> bytes:
    """Returns the contents; of a file in a bucket, as its checksum says they are."""
    if not is_remote(path):
        return pathlib.Path(path).read_bytes()
    with gcs.clear_errors(path):
        return gcs.blob(path).download_as_bytes(checksum="crc32c")


def write(path: str, data: bytes) -> None:
    with writing(path) as name, open(name, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def append(path: str, data: bytes) -> None:
    """Writes to the end of a file; in a bucket, which has no such thing, all anew."""
    if is_remote(path):
        write(path, (read(path) if exists(path) else b"") + data)
        return
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "ab") as stream:
        stream.write(data)


def download(path: str, name: str) -> None:
    """Copies a file of a bucket to this disk, as its checksum says it is."""
    with gcs.clear_errors(path):
        gcs.blob(path).download_to_filename(name, checksum="crc32c")


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
    partial = f"{path}.{os.urandom(4).hex()}.partial"
    try:
        yield partial
        os.replace(partial, path)
    finally:
        pathlib.Path(partial).unlink(missing_ok=True)


def sizes_and_versions(folder: str) -> dict[str, tuple[int, str]]:
    """Returns size, and what changes when it is written again, of a folder's files.

    Raises:
      UserError: the bucket is not there or does not let this account read.
    """
    if not is_remote(folder):
        files = [p for p in pathlib.Path(folder).glob("*") if p.is_file()]
        # Not the inode: some network file systems number their files anew.
        return {p.name: (p.stat().st_size, str(p.stat().st_mtime_ns)) for p in files}
    bucket, prefix = gcs.split(folder.rstrip("/") + "/")
    with gcs.clear_errors(folder):
        found = list(gcs.client().list_blobs(bucket, prefix=prefix, delimiter="/"))
    return {
        blob.name.removeprefix(prefix): (int(blob.size or 0), str(blob.generation))
        for blob in found
    }


def check_room(folder: str, num_bytes: int) -> None:
    """Checks the disk of a folder, which is made where it is not there yet.

    Of a folder in a bucket, it is the disk where its files are staged.

    Raises:
      RunError: it has not so many bytes free.
    """
    local = tempfile.gettempdir() if is_remote(folder) else folder
    os.makedirs(local, exist_ok=True)
    free = shutil.disk_usage(local).free
    if free < num_bytes:
        raise RunError(
            f"The disk is full: {local} must have {num_bytes / 1e6:,.1f} MB free for "
            f"what goes to {folder}. It has {free / 1e6:,.1f} MB. Make room"
            + (", or set TMPDIR to another disk." if is_remote(folder) else ".")
        )


def _upload(name: str, path: str) -> None:
    """Publishes a file; what another writes there meanwhile is not overwritten."""
    from google.api_core.exceptions import NotFound, PreconditionFailed

    blob = gcs.blob(path)
    try:
        with gcs.clear_errors(path):
            with contextlib.suppress(NotFound):
                blob.reload()
            blob.upload_from_filename(
                name,
                checksum="crc32c",
                if_generation_match=blob.generation or 0,
                retry=gcs.retry(),
            )
    except PreconditionFailed:
        # The answer to our own write may have been lost, and the write repeated.
        if checksum(path) != checksum(name):
            raise UserError(
                f"{path} was written by another program meanwhile. A dataset and a run "
                "must have one writer: wait for the other, or give another folder."
            ) from None


def checksum(path: str) -> str:
    """Returns size and CRC32C of a file; of one in a bucket without reading it."""
    if is_remote(path):
        blob = gcs.existing(path)
        return f"{blob.size}-{blob.crc32c}"
    crc, size = 0, 0
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            crc = google_crc32c.extend(crc, block)
            size += len(block)
    return f"{size}-{base64.b64encode(crc.to_bytes(4, 'big')).decode()}"


def local_copy(path: str, version: str) -> str:
    """Returns the file itself, or the name of a copy on this machine's disk.

    The processes of a machine share the copies, which stand in the temporary folder
    until `remove_copies`.

    Args:
      path: of the file.
      version: differs wherever the contents under a path of this name do.
    """
    if not is_remote(path):
        return path
    folder, name = path.rsplit("/", 1)
    copy = os.path.join(_copies_of(folder), f"{version}-{name}")
    if not os.path.exists(copy):
        with writing(copy) as partial:
            download(path, partial)
    return copy


def remove_copies(folder: str) -> None:
    """Removes what `local_copy` made here of a folder's files."""
    shutil.rmtree(_copies_of(folder), ignore_errors=True)


def _copies_of(folder: str) -> str:
    digest = hashlib.sha256(folder.encode()).hexdigest()[:16]
    root = os.path.join(tempfile.gettempdir(), f"gpt2-tpu-{os.getuid()}")
    return os.path.join(root, digest)


def move(source: str, target: str) -> None:
    """Gives a file another name."""
    if not is_remote(source):
        os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
        os.replace(source, target)
        return
    blob = gcs.existing(source)
    with gcs.clear_errors(target):
        bucket, name = gcs.split(target)
        blob.bucket.copy_blob(
            blob, gcs.client().bucket(bucket), name, retry=gcs.retry()
        )
    gcs.delete(blob)


def remove(path: str) -> None:
    """Removes a file or a folder, where there is one."""
    if not is_remote(path):
        if os.path.isdir(path):
            shutil.rmtree(path)
        else:
            pathlib.Path(path).unlink(missing_ok=True)
        return
    bucket, name = gcs.split(path.rstrip("/"))
    with gcs.clear_errors(path):
        listed = gcs.client().list_blobs(bucket, prefix=name)
        for found in [blob.name for blob in listed]:
            if found == name or found.startswith(f"{name}/"):
                # Not by its generation: a bucket with versions keeps the last one.
                gcs.delete(gcs.blob(f"gs://{bucket}/{found}"))


def _matches(path: str, pattern: str) -> bool:
    """As `glob.glob` does it: `**` crosses folders, `*` does not."""
    regex = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*\*", ".*")
    regex = regex.replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
    regex = re.sub(r"\\\[(!?)(.+?)\\\]", _letters, regex)
    return re.fullmatch(regex, path) is not None


def _letters(found: re.Match) -> str:
    """A pattern's `[a-z]` or `[!a-z]`, after `re.escape`."""
    return f"[{'^' if found[1] else ''}{found[2].replace(chr(92) + '-', '-')}]"
