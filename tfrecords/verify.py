"""Compares a dataset with its manifest, without TensorFlow.

Two levels: `verify_shards` compares sizes and counts, and `verify_files` the checksums
of the small files; they take no time and are done before every run. `examine` reads
every record and compares all checksums: those of the records, and the manifest's
SHA-256, which also detects records that were swapped, duplicated or dropped.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np

from configs.errors import DataError, UserError
from tfrecords import checksums, schema
from tfrecords.manifest import TOKENIZER_FOLDER, Manifest, Shard, num_windows
from tfrecords.storage import files

REMEDY = "Copy the dataset again, or preprocess it again with --overwrite."


def verify_shards(data_dir: str, manifest: Manifest, split: str) -> None:
    """Checks that all shards of a split exist with the right size.

    Raises:
      DataError: lists all shards that differ from the manifest.
    """
    problems = shard_problems(data_dir, manifest, split)
    if problems:
        raise DataError("\n".join([*problems, REMEDY]))


def shard_problems(data_dir: str, manifest: Manifest, split: str) -> list[str]:
    """Returns a message for each shard that is missing or has the wrong size.

    The size detects a file that was cut between two records, which TFRecord readers
    accept. Checksums are not read; see `examine`.
    """
    problems = []
    sizes = files.sizes_and_versions(data_dir)
    for shard in manifest.split(split).shards:
        path = files.join(data_dir, shard.name)
        if shard.name not in sizes:
            problems.append(f"{path} is missing.")
        elif sizes[shard.name][0] != shard.num_bytes:
            problems.append(
                f"{path} must have {shard.num_bytes} bytes. It has "
                f"{sizes[shard.name][0]}."
            )
    return problems + _count_problems(manifest, split)


def verify_files(folder: str, manifest: Manifest, *, of_run: bool = False) -> None:
    """Checks the tokenizer, and every other file that is not a shard.

    Args:
      folder: of the dataset, or of a run.
      manifest: of the dataset.
      of_run: whether the folder is a run's, which has a copy of the tokenizer only.

    Raises:
      DataError: a file is missing, damaged, or not one of the dataset.
    """
    if not manifest.other_files:
        _verify_fingerprint(folder, manifest)
        return
    start = f"{TOKENIZER_FOLDER}/"
    listed = {
        name: digest
        for name, digest in manifest.other_files.items()
        if name.startswith(start) or not of_run
    }
    problems = checksums.differences(folder, listed)
    # transformers would read such a file, too.
    problems += [
        f"{files.join(folder, start + name)} is not in the manifest. Remove it."
        for name in sorted(files.sizes_and_versions(files.join(folder, start)))
        if start + name not in listed and name.endswith((".json", ".txt", ".jinja"))
    ]
    if problems:
        remedy = "Copy the tokenizer of the run's dataset again." if of_run else REMEDY
        raise DataError("\n".join([*problems, remedy]))


def _verify_fingerprint(data_dir: str, manifest: Manifest) -> None:
    """Checks the tokenizer of a dataset whose manifest lists no other files."""
    folder = files.join(data_dir, TOKENIZER_FOLDER)
    try:
        from tfrecords import fingerprints  # flags are checked without `tokenizers`

        is_same = fingerprints.is_same(manifest.tokenizer_fingerprint, folder)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        is_same = False  # a damaged file
    if not is_same:
        raise DataError(
            f"{folder} must hold the tokenizer that the manifest names. It is missing, "
            f"damaged or another. {REMEDY}"
        )


class ShardChangeDetector:
    """Detects shards that are rewritten while a run reads them.

    A reader that has opened an old shard does not notice.
    """

    def __init__(self, data_dir: str, manifest: Manifest):
        """Records the sizes and versions of all shards."""
        self._data_dir = data_dir
        splits = manifest.splits.values()
        self._names = [shard.name for split in splits for shard in split.shards]
        self._initial = files.sizes_and_versions(data_dir)

    def check(self) -> None:
        """Compares all shards with those at the start.

        Raises:
          DataError: a shard was replaced or removed.
        """
        current = files.sizes_and_versions(self._data_dir)
        changed = [n for n in self._names if current.get(n) != self._initial.get(n)]
        if changed:
            raise DataError(
                f"The shards of {self._data_dir} must not change while a run reads "
                f"them. Changed since its start: {', '.join(changed[:5])}"
                f"{', …' if len(changed) > 5 else ''}. The steps since the last "
                "checkpoint are dropped. Restore the dataset and run the same command "
                "again, or train on the new dataset in a new --workdir."
            )


@dataclasses.dataclass
class Statistics:
    """Summarizes the records of a split.

    Attributes:
      num_records: number of records.
      real_tokens: tokens that are not padding.
      padding_tokens: tokens that are padding.
      smallest_id: smallest id of a real token.
      largest_id: largest id of a real token; -1 if there are no tokens.
      lengths: number of real tokens -> records.
    """

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
    """Reads and checks every record of a split.

    Args:
      data_dir: folder of the dataset.
      manifest: its manifest.
      split: name of the split.
      progress: called after each shard with the bytes of that shard.

    Returns:
      The statistics of the records, and a message for each shard that differs from
      the manifest, which names the first damaged record.
    """
    statistics, problems = Statistics(), []
    for shard in manifest.split(split).shards:
        path = files.join(data_dir, shard.name)
        if not files.exists(path):
            problems.append(f"{path} is missing.")
        else:
            problems += _examine_shard(path, shard, manifest, statistics)
        progress(shard.num_bytes)
    sizes = shard_problems(data_dir, manifest, split)
    return statistics, problems + [p for p in sizes if p not in problems]


def unlisted_shards(data_dir: str, manifest: Manifest) -> list[str]:
    """Returns the names of shards in the folder that the manifest does not list."""
    listed = {s.name for split in manifest.splits.values() for s in split.shards}
    names = files.sizes_and_versions(data_dir)
    return sorted(n for n in names if n.endswith(".tfrecord") and n not in listed)


def records(
    path: str, dtype: np.dtype
) -> Iterator[tuple[np.ndarray, int | None, int | None]]:
    """Yields (tokens, length, label) of each record of a shard.

    Raises:
      DataError: a record is damaged.
    """
    with files.open_read(path) as stream:
        try:
            for payload in schema.unframe(stream.read):
                yield schema.deserialize(payload, dtype)
        except ValueError as error:
            raise DataError(f"{path}: {error}. {REMEDY}") from error


def _count_problems(manifest: Manifest, name: str) -> list[str]:
    """Checks that the manifest's counts of tokens, records and bytes are consistent.

    All records of a kind have the same size, so the counts determine the bytes.
    """
    split, length = manifest.split(name), manifest.sequence_length
    is_stream = manifest.is_stream
    full = manifest.record_bytes
    padded = schema.frame_bytes(length, manifest.dtype, with_length=True)
    num_records = split.rows or split.documents
    if is_stream:
        num_records = num_windows(split.tokens, length, split.stride)
    problems = []
    for shard in split.shards:
        expected = shard.num_records * full
        last_token = (num_records - 1) * split.stride + length
        if is_stream and shard is split.shards[-1] and last_token > split.tokens:
            expected += padded - full  # the last record of the split
        if shard.num_bytes != expected:
            problems.append(
                f"The manifest's {shard.name} must have {expected} bytes for its "
                f"{shard.num_records} records. It has {shard.num_bytes}."
            )
    if split.num_records != num_records:
        problems.append(
            f"The manifest's {name} split must have {num_records} records for its "
            f"{split.tokens} tokens of {split.documents} documents. It has "
            f"{split.num_records}."
        )
    return problems


def _examine_shard(
    path: str, shard: Shard, manifest: Manifest, statistics: Statistics
) -> list[str]:
    number = 0
    with files.open_read(path) as file:
        stream = _HashingStream(file)
        try:
            for payload in schema.unframe(stream.read):
                tokens, length, _ = schema.deserialize(payload, manifest.dtype)
                _check_record(tokens, length, manifest)
                _add_record(tokens, length, manifest, statistics)
                number += 1
        except ValueError as error:
            return [f"{path}, record {number}: {error}."]
    if number != shard.num_records:
        return [f"{path} must have {shard.num_records} records. It has {number}."]
    sha256 = stream.digest.hexdigest()
    if sha256 != shard.sha256:
        return [
            f"{path} must have the SHA-256 {shard.sha256[:16]}… It has {sha256[:16]}…: "
            "its records are others, or in another order."
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


def _add_record(
    tokens: np.ndarray, length: int | None, manifest: Manifest, statistics: Statistics
) -> None:
    length = len(tokens) if length is None else length
    start = len(tokens) - length if manifest.padding_side == "left" else 0
    real = tokens[start : start + length]
    statistics.num_records += 1
    statistics.real_tokens += length
    statistics.padding_tokens += len(tokens) - length
    statistics.lengths[length] += 1
    if length:
        statistics.smallest_id = min(statistics.smallest_id, int(real.min()))
        statistics.largest_id = max(statistics.largest_id, int(real.max()))


class _HashingStream:
    """Hashes all bytes that are read from a stream."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.digest.update(data)
        return data
