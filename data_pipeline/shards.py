"""Second pass: token files -> one shard, in the order in which it is stored."""

import dataclasses
import json
import os
from collections.abc import Iterator

import numpy as np

from data_pipeline import packing
from tfrecords import manifest, schema, writer


@dataclasses.dataclass(frozen=True)
class ShardItem:
    """Which records a shard holds, in its order, and where their tokens are."""

    path: str
    done_path: str  # written last: the shard's entry for the manifest
    token_files: tuple[str, ...]
    token_counts: tuple[int, ...]
    records: np.ndarray  # int64 [records of this shard]
    sequence_length: int
    token_dtype: str

    @property
    def num_tokens(self) -> int:
        return len(self.records) * self.sequence_length


def write(item: ShardItem) -> tuple[ShardItem, manifest.Shard]:
    """Writes the shard, unless that has been done; returns its manifest entry."""
    if os.path.exists(item.done_path):
        with open(item.done_path) as stream:
            return item, manifest.Shard(**json.load(stream))
    shard = writer.write_shard(item.path, _payloads(item))
    with open(item.done_path + ".partial", "w") as stream:
        json.dump(dataclasses.asdict(shard), stream)
    os.replace(item.done_path + ".partial", item.done_path)
    return item, shard


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
