"""Second pass: token files -> shards, with the records in the order of storage."""

import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import IO

import numpy as np

from configs.errors import UserError
from configs.schema import DataConfig
from data_pipeline import finished_work
from data_pipeline.records import packing
from data_pipeline.tokens import completions, token_files
from data_pipeline.tokens.encoder import Vocabulary
from data_pipeline.tokens.token_files import TokenizeItem
from tfrecords import manifest, order, schema, writer
from tfrecords.storage import files

# Each open token file holds a descriptor, and a corpus of 50 GB has thousands of them.
_MAX_OPEN_FILES = 128
_MIN_AUTOMATIC_SHARDS = 8


@dataclasses.dataclass(frozen=True)
class ShardItem:
    """The work item of the second pass: writes a shard."""

    name: str  # of the shard's file
    work_dir: str  # of the shard and of the token files
    split: str
    records: np.ndarray  # int64 [num_records], of the stream, in the shard's order
    index_fingerprint: str  # of the list of token files; see `_write_index`
    stride: int  # tokens from the start of a packed record to that of the next
    config: DataConfig
    vocabulary: Vocabulary

    @property
    def path(self) -> str:
        """Path of the shard."""
        return f"{self.work_dir}/{self.name}"

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the shard, with padding."""
        return len(self.records) * self.config.sequence_length

    @property
    def token_dtype(self) -> np.dtype:
        """Type of the tokens on disk."""
        return schema.token_dtype(self.vocabulary.size)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that the shard depends on, not of paths."""
        # The fingerprint of the index includes config and vocabulary.
        values = [self.name, self.split, self.index_fingerprint, self.stride]
        return finished_work.fingerprint(values, self.records.tobytes())


def plan(
    split: str,
    items: Sequence[TokenizeItem],
    counts: Sequence[manifest.Counts],
    work_dir: str,
    label_values: dict[str, int],
) -> list[ShardItem]:
    """Decides which shard of a split holds which records.

    Args:
      split: its name.
      items: of the first pass, in the order of the input.
      counts: what the files of each item hold of the split.
      work_dir: folder of the shards.
      label_values: name of each label -> what is stored of it.

    Raises:
      UserError: there are fewer records than `num_shards`.
    """
    config, vocabulary = items[0].chunk.config, items[0].tokenizer.vocabulary
    length = config.sequence_length
    # Windows of the training split may overlap; validation scores each token once.
    stride = config.stride if config.stride and split == "train" else length
    unit = "rows" if config.mode in ("packed", "completion") else "documents"
    unit = "tokens" if config.is_stream else unit
    sizes = [getattr(count, unit) for count in counts]
    num_records = sum(sizes)
    if config.is_stream:
        num_records = manifest.num_windows(sum(sizes), length, stride)
    if split == "train" and num_records < config.num_shards:
        raise UserError(
            "`data.num_shards` must not exceed the number of training records "
            f"({num_records}). Received: {config.num_shards}. Lower it."
        )
    size = num_records * schema.frame_bytes(length, schema.token_dtype(vocabulary.size))
    num_shards = min(_num_shards(size, config), num_records)
    # Training is shuffled once, here; validation keeps the order of the text.
    stored = packing.stored_order(
        num_records, seed=config.seed, shuffle=split == "train"
    )
    ends = np.cumsum(order.shard_sizes(num_records, num_shards))
    values = [[label_values[name] for name in count.labels] for count in counts]
    index_fingerprint = _write_index(_index_path(work_dir, split), items, sizes, values)
    return [
        ShardItem(
            name=manifest.shard_name(split, index, num_shards),
            work_dir=work_dir,
            split=split,
            records=records,
            index_fingerprint=index_fingerprint,
            stride=stride,
            config=config,
            vocabulary=vocabulary,
        )
        for index, records in enumerate(np.split(stored, ends[:-1]))
    ]


def _num_shards(num_bytes: int, config: DataConfig) -> int:
    by_size = -(-num_bytes // (config.shard_mebibytes << 20))
    return config.num_shards or max(by_size, _MIN_AUTOMATIC_SHARDS)


def _index_path(work_dir: str, split: str) -> str:
    return f"{work_dir}/{split}.index.json"


def _write_index(
    path: str,
    items: Sequence[TokenizeItem],
    sizes: list[int],
    label_values: list[list[int]],
) -> str:
    """Writes the list of a split's token files; returns its fingerprint.

    A shard needs the whole list. In a file it is sent to the workers once, and not with
    each of the shards, whose number grows with that of the token files.

    Args:
      path: of the list.
      items: which made the token files.
      sizes: tokens of each item, if data is a stream; else rows or documents.
      label_values: what is stored of each item's labels, by their numbers there.
    """
    index = [
        [item.chunk.name, item.fingerprint, size, values]
        for item, size, values in zip(items, sizes, label_values, strict=True)
        if size  # an empty file is never read
    ]
    files.write(path, json.dumps(index).encode())
    return finished_work.fingerprint(index)


@functools.lru_cache(maxsize=2)
def _read_index(path: str, fingerprint: str) -> list[tuple[str, str, int, list[int]]]:
    del fingerprint  # another list may be stored there later
    return json.loads(files.read(path))


def write(item: ShardItem) -> manifest.Shard:
    """Writes the shard, unless that is done; returns its manifest entry."""

    def work() -> tuple[list[str], dict]:
        shard = writer.write_shard(item.path, _payloads(item))
        return [item.path], dataclasses.asdict(shard)

    entry = finished_work.do_once(f"{item.path}.done", item.fingerprint, work)
    return manifest.Shard(**entry)


def _payloads(item: ShardItem) -> Iterator[bytes]:
    dtype, length = item.token_dtype, item.config.sequence_length
    if item.config.is_stream:
        read_tokens = _stream(item, token_files.TOKENS, dtype, 1)
        pad_id = item.vocabulary.pad_id
        for record in item.records.tolist():
            tokens = read_tokens(record * item.stride, length)
            missing = length - len(tokens)
            if missing:
                padded = np.pad(tokens, (0, missing), constant_values=pad_id)
                yield schema.serialize(padded, length=len(tokens))
            else:
                yield schema.serialize(tokens)
        return
    read_rows = _stream(item, token_files.TOKENS, dtype, length)
    is_completion = item.config.mode == "completion"
    read_masks = _stream(item, token_files.MASKS, completions.MASK_DTYPE, length)
    read_sides = [
        _stream(item, kind, side_dtype, 1)
        for kind, side_dtype in token_files.SIDE_DTYPES.items()
    ]
    for record in item.records.tolist():
        num_tokens, label = (int(read(record, 1)[0]) for read in read_sides)
        yield schema.serialize(
            read_rows(record * length, length),
            length=num_tokens,
            label=label if item.config.mode == "labelled" else None,
            mask=read_masks(record * length, length) if is_completion else None,
        )


def _stream(
    item: ShardItem, kind: str, dtype: np.dtype, width: int
) -> Callable[[int, int], np.ndarray]:
    """Returns a function that reads all files of a kind as one stream.

    Args:
      item: whose split is read.
      kind: TOKENS, LENGTHS, LABELS or MASKS of `token_files`.
      dtype: of the values.
      width: values for each unit of the sizes in the index.

    Returns:
      (position, length) -> values of the stream.
    """
    index = _read_index(_index_path(item.work_dir, item.split), item.index_fingerprint)
    sizes = [size * width for _, _, size, _ in index]
    starts = list(itertools.accumulate(sizes[:-1], initial=0))

    @functools.lru_cache(maxsize=_MAX_OPEN_FILES)
    def open_file(file: int) -> IO[bytes]:
        name, version, *_ = index[file]
        path = token_files.file_path(f"{item.work_dir}/{name}", item.split, kind)
        return open(files.local_copy(path, version), "rb", buffering=0)

    def read(file: int, offset: int, count: int) -> np.ndarray:
        # Not mapped: the pages of a map would count as this process's memory.
        size = dtype.itemsize
        data = os.pread(open_file(file).fileno(), count * size, offset * size)
        values = np.frombuffer(data, dtype)
        if kind == token_files.LABELS and index[file][3]:
            return np.array(index[file][3], dtype)[values]
        return values

    return functools.partial(packing.gather, read, starts)
