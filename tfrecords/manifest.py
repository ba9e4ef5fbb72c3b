"""What a dataset is: the manifest, and the checks that the shards are what it says.

A dataset is a folder with `manifest.json`, its shards `SPLIT-00000-of-00008.tfrecord`
and `tokenizer/`. The manifest is written last: a folder without one is no dataset.
"""

import dataclasses
import hashlib
import json
import re
from typing import Any

import numpy as np
from etils import epath

from tfrecords import schema

FILE_NAME = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"


class DatasetError(ValueError):
    """A dataset that cannot be used; the message names the file and what to do."""

    exit_code = 2


@dataclasses.dataclass(frozen=True)
class Shard:
    """One TFRecord file: its name in the folder, records, size, SHA-256 (hex)."""

    name: str
    num_records: int
    num_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Split:
    """A split's text and its shards.

    `words` (between white space) and `bytes` (UTF-8) count the original text, before
    any detokenizer; `tokens` includes the end-of-text after each document.
    """

    documents: int
    words: int
    bytes: int
    tokens: int
    shards: tuple[Shard, ...]

    @property
    def num_records(self) -> int:
        return sum(shard.num_records for shard in self.shards)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All that a reader needs to know before it opens a shard."""

    format_version: int
    sequence_length: int
    token_dtype: str
    vocabulary_size: int
    end_of_text_id: int
    tokenizer_fingerprint: str
    mode: str
    config: dict[str, Any]
    splits: dict[str, Split]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.token_dtype).newbyteorder("<")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest: shards, tokenizer and config, so all of the data."""
        return hashlib.sha256(to_json(self).encode()).hexdigest()

    def split(self, name: str) -> Split:
        if name not in self.splits:
            raise DatasetError(
                f"The dataset has no split {name!r}. It has: {', '.join(self.splits)}."
            )
        return self.splits[name]


def shard_name(split: str, index: int, count: int) -> str:
    return f"{split}-{index:05d}-of-{count:05d}.tfrecord"


def to_json(manifest: Manifest) -> str:
    return json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True) + "\n"


def load(data_dir: str) -> Manifest:
    """Reads `manifest.json` of a dataset.

    Raises:
      DatasetError: there is none, it is damaged, or of another format version.
    """
    path = epath.Path(data_dir) / FILE_NAME
    if not path.exists():
        raise DatasetError(
            f"`--data_dir` must hold a finished dataset. Received: {data_dir}, which "
            f"has no {FILE_NAME}. Run `make preprocess` to its end, or correct the "
            "folder."
        )
    try:
        values = json.loads(path.read_text())
        version = values["format_version"]
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(f"{path} is damaged: {error!r}.") from error
    if version != schema.FORMAT_VERSION:
        raise DatasetError(
            f"{path} must have format version {schema.FORMAT_VERSION}. "
            f"Received: {version!r}. Preprocess the input again with this gpt2-tpu."
        )
    try:
        return _from_values(values)
    except (TypeError, KeyError, AttributeError) as error:
        raise DatasetError(f"{path} is damaged: {error!r}.") from error


def verify_shards(data_dir: str, manifest: Manifest, split: str) -> None:
    """Checks that every shard of a split is there with the size of its records.

    TFRecord readers take a file that was cut between two records for whole; the
    size tells. Checksums are not read here.

    Raises:
      DatasetError: lists all shards that are not as the manifest says.
    """
    problems = []
    for shard in manifest.split(split).shards:
        path = epath.Path(data_dir) / shard.name
        found = path.stat().length if path.exists() else None
        if found is None:
            problems.append(f"{path} is missing.")
        elif found != shard.num_bytes:
            problems.append(
                f"{path} must have {shard.num_bytes} bytes. It has {found}."
            )
    problems += _count_problems(manifest, split)
    if problems:
        raise DatasetError(
            "\n".join(problems) + "\nCopy the dataset again, or preprocess it again."
        )


def verify_tokenizer(data_dir: str, manifest: Manifest) -> None:
    """Raises DatasetError where the dataset's tokenizer is not the manifest's."""
    folder = epath.Path(data_dir) / TOKENIZER_FOLDER
    if tokenizer_fingerprint(str(folder)) != manifest.tokenizer_fingerprint:
        raise DatasetError(
            f"{folder} must hold the tokenizer that the manifest names. It is missing "
            "or another. Copy the dataset again, or preprocess it again."
        )


def tokenizer_fingerprint(folder: str) -> str | None:
    """Returns the SHA-256 of a BPE tokenizer's vocabulary and merges.

    Reads `tokenizer.json`, or `vocab.json` and `merges.txt`; the same tokenizer has
    the same fingerprint in both forms. None where the folder holds neither.
    """
    root = epath.Path(folder)
    if (root / "tokenizer.json").exists():
        model = json.loads((root / "tokenizer.json").read_text())["model"]
        vocabulary, merges = model["vocab"], model.get("merges", [])
    elif (root / "vocab.json").exists() and (root / "merges.txt").exists():
        vocabulary = json.loads((root / "vocab.json").read_text())
        lines = (root / "merges.txt").read_text().split("\n")
        merges = [line for line in lines if line and not line.startswith("#version")]
    else:
        return None
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    canonical = json.dumps([vocabulary, pairs], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _count_problems(manifest: Manifest, name: str) -> list[str]:
    """Compares each shard's records with its size, which the record's size ties."""
    split, length = manifest.split(name), manifest.sequence_length
    full = schema.frame_bytes(length, manifest.dtype)
    padded = schema.frame_bytes(length, manifest.dtype, padded=True)
    problems = []
    for shard in split.shards:
        expected = shard.num_records * full
        if shard is split.shards[-1] and split.tokens % length:
            expected += padded - full  # the last record of the split
        if shard.num_bytes != expected:
            problems.append(
                f"The manifest's {shard.name} must have {expected} bytes for its "
                f"{shard.num_records} records. It has {shard.num_bytes}."
            )
    if split.num_records != -(-split.tokens // length):
        problems.append(
            f"The manifest's {name} split must have {-(-split.tokens // length)} "
            f"records for its {split.tokens} tokens. It has {split.num_records}."
        )
    return problems


def _from_values(values: dict[str, Any]) -> Manifest:
    splits = {}
    for name, split in values["splits"].items():
        shards = tuple(Shard(**shard) for shard in split["shards"])
        for shard in shards:
            # A name is never a path out of the folder.
            if not re.fullmatch(r"[a-z]+-\d{5}-of-\d{5}\.tfrecord", shard.name):
                raise KeyError(f"shard name {shard.name!r}")
        splits[name] = Split(**{**split, "shards": shards})
    return Manifest(**{**values, "splits": splits})
