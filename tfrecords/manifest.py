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

from configs.errors import DataError, UserError
from tfrecords import schema
from tfrecords.storage import files

FILE_NAME = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One TFRecord file: its name in the folder, records, size, SHA-256 (hex)."""

    name: str
    num_records: int
    num_bytes: int
    sha256: str


@dataclasses.dataclass
class Counts:
    """What a text holds.

    `words` (between white space) and `bytes` (UTF-8) count the original text, before
    any detokenizer; `tokens` counts each token once, with the start and end tokens of
    the documents and without padding and what was truncated.
    """

    documents: int = 0
    words: int = 0
    bytes: int = 0
    tokens: int = 0
    # Documents of which `truncated_tokens` did not fit into their record.
    truncated_documents: int = 0
    truncated_tokens: int = 0
    # Documents left out, changed, and with something odd that was kept, by what it is.
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    repaired: dict[str, int] = dataclasses.field(default_factory=dict)
    kept: dict[str, int] = dataclasses.field(default_factory=dict)
    # Labelled: documents by label.
    labels: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Split(Counts):
    """A split's text and its shards."""

    # Packed: tokens from the start of a record to that of the next.
    stride: int = 0
    shards: tuple[Shard, ...] = ()

    @property
    def num_records(self) -> int:
        return sum(shard.num_records for shard in self.shards)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All that a reader needs to know before it opens a shard.

    `mode`: "packed" (records are windows of one stream of tokens), "document" (a
    record is a document) or "labelled" (and has a label). `padding_side`, "right" or
    "left", is where the `pad_id` of a record stand. `added_tokens`: special tokens
    that the job added to the tokenizer that it was given. `tokenizer_engine` made the
    tokens; all engines make the same.
    """

    format_version: int
    sequence_length: int
    token_dtype: str
    vocabulary_size: int
    end_of_text_id: int
    pad_id: int
    padding_side: str
    tokenizer_fingerprint: str
    tokenizer_engine: str
    added_tokens: tuple[str, ...]
    mode: str
    config: dict[str, Any]
    splits: dict[str, Split]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.token_dtype).newbyteorder("<")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest but for `tokenizer_engine`: so of all of the data."""
        data = dataclasses.replace(self, tokenizer_engine="")
        return hashlib.sha256(to_json(data).encode()).hexdigest()

    @property
    def labelled(self) -> bool:
        return self.mode == "labelled"

    def split(self, name: str) -> Split:
        if name not in self.splits:
            raise DataError(
                f"The dataset has no split {name!r}. It has: {', '.join(self.splits)}."
            )
        return self.splits[name]


def num_windows(num_tokens: int, sequence_length: int, stride: int) -> int:
    """Returns how many windows, a stride apart, hold all tokens of a stream."""
    return 1 + max(-(-(num_tokens - sequence_length) // stride), 0)


def shard_name(split: str, index: int, count: int) -> str:
    return f"{split}-{index:05d}-of-{count:05d}.tfrecord"


def to_json(manifest: Manifest) -> str:
    return json.dumps(dataclasses.asdict(manifest), indent=1, sort_keys=True) + "\n"


def load(data_dir: str) -> Manifest:
    """Reads `manifest.json` of a dataset.

    Raises:
      DataError: there is none, it is damaged, or of another format version.
    """
    path = files.join(data_dir, FILE_NAME)
    if not files.exists(path):
        raise DataError(
            f"`--data_dir` must hold a finished dataset. Received: {data_dir}, which "
            f"has no {FILE_NAME}. Run `make preprocess` to its end, or correct the "
            "folder."
        )
    return from_json(files.read(path).decode(errors="replace"), path)


def from_json(text: str, path: str) -> Manifest:
    """Returns the manifest that was read from `path`; raises as `load` does."""
    try:
        values = json.loads(text)
        version = values["format_version"]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is damaged: {error!r}.") from error
    if version != schema.FORMAT_VERSION:
        raise DataError(
            f"{path} must have format version {schema.FORMAT_VERSION}. "
            f"Received: {version!r}. Preprocess the input again with this gpt2-tpu."
        )
    try:
        return _from_values(values)
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} is damaged: {error!r}.") from error


def verify_shards(data_dir: str, manifest: Manifest, split: str) -> None:
    """Checks that every shard of a split is there with the size of its records.

    Raises:
      DataError: lists all shards that are not as the manifest says.
    """
    problems = shard_problems(data_dir, manifest, split)
    if problems:
        raise DataError(
            "\n".join(problems) + "\nCopy the dataset again, or preprocess it again."
        )


def shard_problems(data_dir: str, manifest: Manifest, split: str) -> list[str]:
    """Names the shards that are missing or not of the size of their records.

    TFRecord readers take a file that was cut between two records for whole; the
    size tells. Checksums are not read here, but in `integrity`.
    """
    problems = []
    there = files.sizes_and_versions(data_dir)
    for shard in manifest.split(split).shards:
        path = files.join(data_dir, shard.name)
        if shard.name not in there:
            problems.append(f"{path} is missing.")
        elif there[shard.name][0] != shard.num_bytes:
            problems.append(
                f"{path} must have {shard.num_bytes} bytes. It has "
                f"{there[shard.name][0]}."
            )
    return problems + _count_problems(manifest, split)


class Watch:
    """Notices when shards are written again while a run reads them.

    A reader that has opened the old shard, or half of it, would not.
    """

    def __init__(self, data_dir: str, manifest: Manifest):
        self._data_dir = data_dir
        splits = manifest.splits.values()
        self._names = [shard.name for split in splits for shard in split.shards]
        self._before = files.sizes_and_versions(data_dir)

    def check(self) -> None:
        """Raises DataError where a shard is another file than at the start."""
        now = files.sizes_and_versions(self._data_dir)
        changed = [n for n in self._names if now.get(n) != self._before.get(n)]
        if changed:
            raise DataError(
                f"The shards of {self._data_dir} must stay as they are while a run "
                f"reads them. Changed since its start: {', '.join(changed[:5])}"
                f"{', …' if len(changed) > 5 else ''}. What was trained since the last "
                "checkpoint is dropped: bring the dataset back, and give the same "
                "command again; or train on the new one in a new --workdir."
            )


def verify_tokenizer(data_dir: str, manifest: Manifest) -> None:
    """Raises DataError where the dataset's tokenizer is not the manifest's."""
    folder = files.join(data_dir, TOKENIZER_FOLDER)
    try:
        found = tokenizer_fingerprint(folder)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        found = "damaged"
    if found != manifest.tokenizer_fingerprint:
        raise DataError(
            f"{folder} must hold the tokenizer that the manifest names. It is missing, "
            "damaged or another. Copy the dataset again, or preprocess it again."
        )


def tokenizer_fingerprint(folder: str) -> str | None:
    """Returns the SHA-256 of a BPE tokenizer's vocabulary and merges.

    Reads `tokenizer.json`, or `vocab.json` and `merges.txt`; the same tokenizer has
    the same fingerprint in both forms. Added tokens belong to the vocabulary. None
    where the folder holds neither.
    """
    whole, vocabulary_path, merges_path = (
        files.join(folder, name)
        for name in ("tokenizer.json", "vocab.json", "merges.txt")
    )
    if files.exists(whole):
        return fingerprint_of_tokenizer(files.read(whole).decode())
    if files.exists(vocabulary_path) and files.exists(merges_path):
        vocabulary = json.loads(files.read(vocabulary_path))
        lines = files.read(merges_path).decode().split("\n")
        merges = [line for line in lines if line and not line.startswith("#version")]
        return _fingerprint(vocabulary, merges)
    return None


def fingerprint_of_tokenizer(tokenizer_json: str) -> str:
    """As `tokenizer_fingerprint`, of the content of a `tokenizer.json`."""
    stored = json.loads(tokenizer_json)
    added = {t["content"]: t["id"] for t in stored.get("added_tokens", [])}
    vocabulary = {**stored["model"]["vocab"], **added}
    return _fingerprint(vocabulary, stored["model"].get("merges", []))


def _fingerprint(vocabulary: dict[str, int], merges: list) -> str:
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    canonical = json.dumps([vocabulary, pairs], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _count_problems(manifest: Manifest, name: str) -> list[str]:
    """Compares each shard's records with its size, which the record's size ties."""
    split, length = manifest.split(name), manifest.sequence_length
    packed = manifest.mode == "packed"
    full = schema.frame_bytes(
        length, manifest.dtype, with_length=not packed, with_label=manifest.labelled
    )
    padded = schema.frame_bytes(length, manifest.dtype, with_length=True)
    num_records = split.documents
    if packed:
        num_records = num_windows(split.tokens, length, split.stride)
    problems = []
    for shard in split.shards:
        expected = shard.num_records * full
        last_token = (num_records - 1) * split.stride + length
        if packed and shard is split.shards[-1] and last_token > split.tokens:
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


def _from_values(values: dict[str, Any]) -> Manifest:
    splits = {}
    for name, split in values["splits"].items():
        shards = tuple(Shard(**shard) for shard in split["shards"])
        for shard in shards:
            # A name is never a path out of the folder.
            if not re.fullmatch(r"[a-z]+-\d{5}-of-\d{5}\.tfrecord", shard.name):
                raise KeyError(f"shard name {shard.name!r}")
        splits[name] = Split(**{**split, "shards": shards})
    added_tokens = tuple(values["added_tokens"])
    return Manifest(**{**values, "splits": splits, "added_tokens": added_tokens})
