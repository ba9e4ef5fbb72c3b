"""Writes shards; a shard appears complete or not at all."""

import hashlib
import itertools
import os
from collections.abc import Iterable

from tfrecords import schema
from tfrecords.manifest import Shard
from tfrecords.storage import files

_BATCH_RECORDS = 256


def write_shard(path: str, payloads: Iterable[bytes]) -> Shard:
    """Writes serialized records as a TFRecord file.

    Args:
      path: path of the shard, on a disk or in a bucket.
      payloads: results of `schema.serialize`, in order.

    Returns:
      The shard's entry for the manifest.
    """
    digest = hashlib.sha256()
    num_records = num_bytes = 0
    frames = map(schema.frame, payloads)
    with files.writing(path) as partial, open(partial, "wb") as file:
        # In batches: hashing and writing records one by one takes twice as long.
        while batch := list(itertools.islice(frames, _BATCH_RECORDS)):
            data = b"".join(batch)
            digest.update(data)
            num_bytes += file.write(data)
            num_records += len(batch)
        file.flush()
        os.fsync(file.fileno())
    return Shard(os.path.basename(path), num_records, num_bytes, digest.hexdigest())
