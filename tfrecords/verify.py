"""Reads a dataset record by record, without TensorFlow: what is in it, what is wrong.

Every byte is compared with a checksum: the frames' own, and the manifest's SHA-256,
which notices records that were exchanged, doubled or left out, too.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np

from configs.errors import DataError
from tfrecords import manifest as manifests
from tfrecords import schema
from tfrecords.manifest import Manifest, Shard
from tfrecords.storage import files


@dataclasses.dataclass
class Statistics:
    """What the records of a split hold; `lengths` counts records by real tokens."""

    num_records: int = 0
    real_tokens: int = 0
    padding_tokens: int = 0
    smallest_id: int = 1 << 32
    largest_id: int = -1
    lengths: Counter[int] = dataclasses.field(default_factory=Counter)


def examine(
    data_dir: str,
    manifest: Manifest,
    split: str,
    progress: Callable[[int], object] = lambda _: None,
) -> tuple[Statistics, list[str]]:
    """Reads every record of a split.

    Args:
      data_dir: folder of the dataset.
      manifest: its manifest.
      split: name of the split.
      progress: is told the bytes that have been read, shard by shard.

    Returns:
      What the records hold, and a message for each shard that is not as the manifest
      says, with the first record that is damaged.
    """
    statistics, problems = Statistics(), []
    for shard in manifest.split(split).shards:
        path = files.join(data_dir, shard.name)
        if not files.exists(path):
            problems.append(f"{path} is missing.")
        else:
            problems += _examine_shard(path, shard, manifest, statistics)
        progress(shard.num_bytes)
    sizes = manifests.shard_problems(data_dir, manifest, split)
    return statistics, problems + [p for p in sizes if p not in problems]


def unlisted_shards(data_dir: str, manifest: Manifest) -> list[str]:
    """Names the shards in the folder that the manifest does not know."""
    listed = {s.name for split in manifest.splits.values() for s in split.shards}
    found = files.sizes_and_versions(data_dir)
    return sorted(n for n in found if n.endswith(".tfrecord") and n not in listed)


def records(
    path: str, dtype: np.dtype
) -> Iterator[tuple[np.ndarray, int | None, int | None]]:
    """Yields (tokens, length, label) of a shard; DataError at damage."""
    with files.open_read(path) as stream:
        try:
            for payload in schema.unframe(stream.read):
                yield schema.deserialize(payload, dtype)
        except ValueError as error:
            raise DataError(f"{path}: {error}.") from error


def _examine_shard(
    path: str, shard: Shard, manifest: Manifest, statistics: Statistics
) -> list[str]:
    number = 0
    with files.open_read(path) as file:
        stream = _Hashed(file)
        try:
            for payload in schema.unframe(stream.read):
                tokens, length, _ = schema.deserialize(payload, manifest.dtype)
                _check_record(tokens, length, manifest)
                _count(tokens, length, manifest, statistics)
                number += 1
        except ValueError as error:
            return [f"{path}, record {number}: {error}."]
    if number != shard.num_records:
        return [f"{path} must have {shard.num_records} records. It has {number}."]
    if stream.digest.hexdigest() != shard.sha256:
        return [
            f"{path} must have the SHA-256 {shard.sha256[:16]}… It has "
            f"{stream.digest.hexdigest()[:16]}…: its records are others, or in another "
            "order."
        ]
    return []


def _check_record(tokens: np.ndarray, length: int | None, manifest: Manifest) -> None:
    if len(tokens) != manifest.sequence_length:
        raise ValueError(
            f"it must have {manifest.sequence_length} tokens. It has {len(tokens)}"
        )
    if length is not None and length > len(tokens):
        raise ValueError(f"its length {length} exceeds its {len(tokens)} tokens")
    if int(tokens.max()) >= manifest.vocabulary_size:
        raise ValueError(
            f"it holds the token id {tokens.max()}, outside the vocabulary of "
            f"{manifest.vocabulary_size}"
        )


def _count(
    tokens: np.ndarray, length: int | None, manifest: Manifest, counted: Statistics
) -> None:
    length = len(tokens) if length is None else length
    start = len(tokens) - length if manifest.padding_side == "left" else 0
    real = tokens[start : start + length]
    counted.num_records += 1
    counted.real_tokens += length
    counted.padding_tokens += len(tokens) - length
    counted.lengths[length] += 1
    if length:
        counted.smallest_id = min(counted.smallest_id, int(real.min()))
        counted.largest_id = max(counted.largest_id, int(real.max()))


class _Hashed:
    """A stream that hashes what is read from it."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.digest.update(data)
        return data
