"""Second pass: token files -> shards, each in the order in which it is stored."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import IO

import numpy as np

from configs.errors import UserError
from data_pipeline import chunks, markers, packing
from tfrecords import manifest, order, schema, writer
from tfrecords.storage import files

# A corpus of 50 GB has thousands of token files; each open one holds a descriptor.
_MAX_OPEN_FILES = 128
_MIN_AUTOMATIC_SHARDS = 8


@dataclasses.dataclass(frozen=True)
class ShardItem:
    """Which records a shard holds, in its order, and where their tokens are.

    `chunk_sizes`: of each chunk, tokens of a packed split, else documents.
    """

    name: str
    work_dir: str
    split: str
    chunk_paths: tuple[str, ...]
    chunk_fingerprints: tuple[str, ...]
    chunk_sizes: tuple[int, ...]
    records: np.ndarray  # int64 [records of this shard]
    mode: str
    sequence_length: int
    stride: int
    token_dtype: str
    pad_id: int

    @property
    def path(self) -> str:
        return f"{self.work_dir}/{self.name}"

    @property
    def num_tokens(self) -> int:
        return len(self.records) * self.sequence_length

    @property
    def fingerprint(self) -> str:
        """Of all that the shard depends on; paths do not count."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("work_dir", "chunk_paths", "records")
        }
        return markers.fingerprint(values, self.records.tobytes())


def plan(
    split: str,
    work: Sequence[chunks.Chunk],
    counts: Sequence[manifest.Counts],
    work_dir: str,
) -> list[ShardItem]:
    """Settles which shard of a split holds which records.

    Args:
      split: its name.
      work: all chunks, in the order of the input.
      counts: what each of them holds of the split.
      work_dir: where the shards go.

    Raises:
      UserError: there are fewer records than `num_shards`.
    """
    config, dtype = work[0].config, np.dtype(work[0].token_dtype)
    length, packed = config.sequence_length, config.mode == "packed"
    # A validation token is scored once: overlap is for training.
    stride = config.stride if config.stride and split == "train" else length
    total = chunks.total(counts)
    num_records = total.documents
    if packed:
        num_records = manifest.num_windows(total.tokens, length, stride)
    size = num_records * schema.frame_bytes(length, dtype)
    by_size = -(-size // (config.shard_mebibytes << 20))
    num_shards = min(
        config.num_shards or max(by_size, _MIN_AUTOMATIC_SHARDS), num_records
    )
    if split == "train" and num_shards < config.num_shards:
        raise UserError(
            "`data.num_shards` must not exceed the number of training records "
            f"({num_records}). Received: {config.num_shards}."
        )
    # Validation stays in the order of the text; training is shuffled once, here.
    stored = packing.stored_order(
        num_records, seed=config.seed, shuffle=split == "train"
    )
    ends = np.cumsum(order.shard_sizes(num_records, num_shards))
    fingerprints = tuple(chunk.fingerprint for chunk in work)
    return [
        ShardItem(
            name=manifest.shard_name(split, index, num_shards),
            work_dir=work_dir,
            split=split,
            chunk_paths=tuple(chunk.path for chunk in work),
            chunk_fingerprints=fingerprints,
            chunk_sizes=tuple(
                count.tokens if packed else count.documents for count in counts
            ),
            records=records,
            mode=config.mode,
            sequence_length=length,
            stride=stride,
            token_dtype=dtype.str,
            pad_id=work[0].vocabulary.pad_id,
        )
        for index, records in enumerate(np.split(stored, ends[:-1]))
    ]


def write(item: ShardItem) -> tuple[ShardItem, manifest.Shard]:
    """Writes the shard, unless that has been done; returns its manifest entry."""
    marker, fingerprint = f"{item.path}.done", item.fingerprint
    entry = markers.load(marker, fingerprint)
    if entry is None:
        shard = writer.write_shard(item.path, _payloads(item))
        entry = dataclasses.asdict(shard)
        markers.save(marker, fingerprint, [item.path], entry)
    return item, manifest.Shard(**entry)


def _payloads(item: ShardItem) -> Iterator[bytes]:
    dtype, length = np.dtype(item.token_dtype), item.sequence_length
    if item.mode == "packed":
        tokens = _stream(item, chunks.TOKENS, dtype, 1)
        for record in item.records.tolist():
            found = tokens(record * item.stride, length)
            missing = length - len(found)
            if missing:
                padded = np.pad(found, (0, missing), constant_values=item.pad_id)
                yield schema.serialize(padded, length=len(found))
            else:
                yield schema.serialize(found)
        return
    rows = _stream(item, chunks.TOKENS, dtype, length)
    side = [
        _stream(item, kind, stored, 1) for kind, stored in chunks.SIDE_DTYPES.items()
    ]
    for record in item.records:
        real, label = (int(numbers(int(record), 1)[0]) for numbers in side)
        yield schema.serialize(
            rows(int(record) * length, length),
            length=real,
            label=label if item.mode == "labelled" else None,
        )


def _stream(
    item: ShardItem, kind: str, dtype: np.dtype, width: int
) -> Callable[[int, int], np.ndarray]:
    """Returns (position, length) -> values of all files of a kind as one stream.

    Args:
      item: whose split is read.
      kind: TOKENS, LENGTHS or LABELS of `chunks`.
      dtype: of the values.
      width: values for each unit of the item's `chunk_sizes`.
    """
    # A file without values is never asked for.
    versioned_paths = [
        (chunks.file_path(path, item.split, kind), version)
        for path, version, size in zip(
            item.chunk_paths, item.chunk_fingerprints, item.chunk_sizes, strict=True
        )
        if size
    ]
    sizes = [size * width for size in item.chunk_sizes if size]
    starts = list(itertools.accumulate(sizes[:-1], initial=0))

    @functools.lru_cache(maxsize=_MAX_OPEN_FILES)
    def opened(file: int) -> IO[bytes]:
        return open(files.local_copy(*versioned_paths[file]), "rb", buffering=0)

    def read(file: int, offset: int, count: int) -> np.ndarray:
        # Not mapped: the pages of a map would count as this process's memory.
        size = dtype.itemsize
        data = os.pread(opened(file).fileno(), count * size, offset * size)
        return np.frombuffer(data, dtype)

    return lambda position, length: packing.gather(read, starts, position, length)
