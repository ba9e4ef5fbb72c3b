"""Second pass: token files -> one shard, in the order in which it is stored."""

import dataclasses
import functools
import json
import os
from collections.abc import Iterator

import numpy as np

from data_pipeline import packing
from tfrecords import manifest, schema, writer

# The end of the marker that is written last: the shard's entry for the manifest.
_DONE_SUFFIX = ".done"
# A corpus of 50 GB has thousands of token files; each open one holds a descriptor.
_MAX_OPEN_FILES = 128


@dataclasses.dataclass(frozen=True)
class ShardItem:
    """Which records a shard holds, in its order, and where their tokens are."""

    name: str
    work_dir: str
    token_files: tuple[str, ...]
    token_counts: tuple[int, ...]
    records: np.ndarray  # int64 [records of this shard]
    sequence_length: int
    token_dtype: str

    @property
    def path(self) -> str:
        return os.path.join(self.work_dir, self.name)

    @property
    def num_tokens(self) -> int:
        return len(self.records) * self.sequence_length


def write(item: ShardItem) -> tuple[ShardItem, manifest.Shard]:
    """Writes the shard, unless that has been done; returns its manifest entry."""
    done_path = item.path + _DONE_SUFFIX
    if os.path.exists(done_path):
        with open(done_path) as stream:
            return item, manifest.Shard(**json.load(stream))
    shard = writer.write_shard(item.path, _payloads(item))
    with open(done_path + ".partial", "w") as stream:
        json.dump(dataclasses.asdict(shard), stream)
    os.replace(done_path + ".partial", done_path)
    return item, shard


def _payloads(item: ShardItem) -> Iterator[bytes]:
    dtype = np.dtype(item.token_dtype)
    # A file without tokens cannot be mapped, nor is it needed.
    sizes = zip(item.token_files, item.token_counts, strict=True)
    files = [(path, count) for path, count in sizes if count]
    starts = np.cumsum([0, *(count for _, count in files[:-1])])

    @functools.lru_cache(maxsize=_MAX_OPEN_FILES)
    def mapped(file: int) -> np.ndarray:
        return np.memmap(files[file][0], dtype, mode="r")

    def read(file: int, offset: int, count: int) -> np.ndarray:
        return mapped(file)[offset : offset + count]

    for record in item.records:
        tokens = packing.gather(read, starts, int(record), item.sequence_length)
        missing = item.sequence_length - len(tokens)
        if missing:
            yield schema.serialize(np.pad(tokens, (0, missing)), length=len(tokens))
        else:
            yield schema.serialize(tokens)
