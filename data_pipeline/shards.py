"""Second pass: token files -> one shard, in the order in which it is stored."""

import dataclasses
import json
import os
from collections.abc import Iterator

import numpy as np

from data_pipeline import packing
from tfrecords import manifest, schema, writer

# The end of the marker that is written last: the shard's entry for the manifest.
_DONE_SUFFIX = ".done"


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


def finished(work_dir: str) -> list[str]:
    """Returns the names of the shards that were finished in a work folder."""
    names = [name for name in os.listdir(work_dir) if name.endswith(_DONE_SUFFIX)]
    return [name.removesuffix(_DONE_SUFFIX) for name in names]


def _payloads(item: ShardItem) -> Iterator[bytes]:
    dtype = np.dtype(item.token_dtype)
    # A file without tokens cannot be mapped, nor is it needed.
    files = [
        np.memmap(path, dtype, mode="r")
        for path, count in zip(item.token_files, item.token_counts, strict=True)
        if count
    ]
    counts = [len(file) for file in files]
    starts = np.cumsum([0, *counts[:-1]])
    for record in item.records:
        tokens = packing.gather(files, starts, int(record), item.sequence_length)
        missing = item.sequence_length - len(tokens)
        if missing:
            yield schema.serialize(np.pad(tokens, (0, missing)), length=len(tokens))
        else:
            yield schema.serialize(tokens)
