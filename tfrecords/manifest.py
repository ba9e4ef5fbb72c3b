"""Defines the manifest, which describes a dataset, and reads and writes it as JSON.

A dataset is a folder with `manifest.json`, shards `SPLIT-00000-of-00008.tfrecord` and
`tokenizer/`. The manifest is written last: a folder without one is not a dataset.
`tfrecords.verify` compares the other files with it.
"""

import dataclasses
import hashlib
import json
import re
from typing import Any

import numpy as np

from configs.errors import DataError
from tfrecords import checksums, schema
from tfrecords.storage import files

FILE_NAME = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"


@dataclasses.dataclass(frozen=True)
class Shard:
    """Describes one TFRecord file.

    Attributes:
      name: file name in the dataset's folder.
      num_records: number of records.
      num_bytes: size of the file.
      sha256: SHA-256 of the file, hexadecimal.
    """

    name: str
    num_records: int
    num_bytes: int
    sha256: str


@dataclasses.dataclass
class Counts:
    """Counts the contents of a text.

    Attributes:
      documents: number of documents.
      words: words, separated by white space, of the text before any detokenizer.
      bytes: UTF-8 bytes of the text before any detokenizer.
      tokens: tokens including start and end tokens, each counted once; without padding
        and truncated tokens.
      truncated_documents: documents that did not fit into their record.
      truncated_tokens: tokens that were cut off.
      skipped: reason -> documents left out.
      repaired: reason -> documents changed.
      kept: reason -> documents with an irregularity that were left as they are; of
        "special_token_as_text" and "unknown_token", the occurrences.
      labels: label -> labelled documents.
      rows: records of completion data, and of packed data that is not a stream; 0 where
        the other counts determine them.
    """

    documents: int = 0
    words: int = 0
    bytes: int = 0
    tokens: int = 0
    truncated_documents: int = 0
    truncated_tokens: int = 0
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    repaired: dict[str, int] = dataclasses.field(default_factory=dict)
    kept: dict[str, int] = dataclasses.field(default_factory=dict)
    labels: dict[str, int] = dataclasses.field(default_factory=dict)
    rows: int = 0


@dataclasses.dataclass
class Split(Counts):
    """Describes a split: the counts of its text, and its shards.

    Attributes:
      stride: packed data: tokens from the start of one record to that of the next.
      shards: its files, in order.
    """

    stride: int = 0
    shards: tuple[Shard, ...] = ()

    @property
    def num_records(self) -> int:
        """Returns the number of records of all shards."""
        return sum(shard.num_records for shard in self.shards)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Describes a dataset: all that a reader must know before it opens a shard.

    Attributes:
      format_version: version of the format, `schema.FORMAT_VERSION`.
      sequence_length: tokens of a record, including padding.
      token_dtype: NumPy name of the type of stored tokens.
      vocabulary_size: number of token ids, including added tokens.
      end_of_text_id: id of the end-of-text token.
      pad_id: id that fills records.
      padding_side: "right" or "left", where a record is padded.
      tokenizer_fingerprint: see `tfrecords.fingerprints`.
      tokenizer_engine: library that encoded the text; all engines give equal tokens.
      added_tokens: special tokens that preprocessing added to the tokenizer.
      mode: "packed" (records are windows of one stream of tokens, or begin at
        documents), "document" (each record is one document), "labelled" (the same, with
        a label) or "completion" (prompts and completions, with a mask).
      config: the preprocessing settings that determine the records.
      splits: name -> split.
      label_names: of labelled data: the names of the labels 0, 1 and so on; empty where
        labels are integers by themselves.
      other_files: path in the folder -> SHA-256, of all files but shards and the
        manifest; empty in datasets of older versions.
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
    label_names: tuple[str, ...] = ()
    other_files: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def dtype(self) -> np.dtype:
        """Returns the little-endian dtype of stored tokens."""
        return np.dtype(self.token_dtype).newbyteorder("<")

    @property
    def record_bytes(self) -> int:
        """Returns the size in a shard of all records but the last of a stream."""
        return schema.frame_bytes(
            self.sequence_length,
            self.dtype,
            with_length=not self.is_stream,
            with_label=self.labelled,
            with_mask=self.masked,
        )

    @property
    def fingerprint(self) -> str:
        """Returns the SHA-256 of the manifest without engine and other files.

        It identifies the data, because the manifest holds the shards' checksums.
        """
        values = _values(dataclasses.replace(self, tokenizer_engine=""))
        del values["other_files"]  # they depend on the version of transformers
        return hashlib.sha256(_dump(values).encode()).hexdigest()

    @property
    def is_stream(self) -> bool:
        """Returns whether records are windows of one stream of tokens.

        Only those that end in padding have a length.
        """
        return self.mode == "packed" and self.config.get("align", "none") == "none"

    @property
    def labelled(self) -> bool:
        """Returns whether records have labels."""
        return self.mode == "labelled"

    @property
    def masked(self) -> bool:
        """Returns whether records have masks."""
        return self.mode == "completion"

    @property
    def labels(self) -> tuple[str, ...]:
        """Returns the labels of the training split: names sorted, integers by size."""
        return tuple(sorted(self.split("train").labels, key=self.stored_label))

    def stored_label(self, label: str) -> int:
        """Returns what records hold of a label; of an unknown one, what none holds."""
        if self.label_names:
            return (*self.label_names, label).index(label)
        return int(label) if re.fullmatch(r"-?\d+", label) else 1 << 31

    @property
    def start_token(self) -> str:
        """Returns the token that each document begins with, or ""."""
        return self.config.get("start_token", "")

    def split(self, name: str) -> Split:
        """Returns a split.

        Raises:
          DataError: the dataset does not have the split.
        """
        if name not in self.splits:
            raise DataError(
                f"The split must be one of {', '.join(self.splits)}, which the dataset "
                f"has. Received: {name!r}."
            )
        return self.splits[name]


def num_windows(num_tokens: int, sequence_length: int, stride: int) -> int:
    """Returns how many windows, `stride` apart, cover all tokens of a stream."""
    return 1 + max(-(-(num_tokens - sequence_length) // stride), 0)


def shard_name(split: str, index: int, count: int) -> str:
    """Returns the file name of a shard, such as `train-00000-of-00008.tfrecord`."""
    return f"{split}-{index:05d}-of-{count:05d}.tfrecord"


def to_json(manifest: Manifest) -> str:
    """Returns the contents of `manifest.json`."""
    return _dump(checksums.sealed(_values(manifest)))


def _values(manifest: Manifest) -> dict[str, Any]:
    """Returns the fields; older versions know no names of labels, and no rows."""
    values = dataclasses.asdict(manifest)
    if not manifest.label_names:
        del values["label_names"]
    for split in values["splits"].values():
        if not split["rows"]:
            del split["rows"]
    return values


def _dump(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=1, sort_keys=True) + "\n"


def load(data_dir: str) -> Manifest:
    """Reads `manifest.json` of a dataset.

    Raises:
      DataError: the manifest is missing, damaged or of another format version.
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
    """Parses a manifest.

    Args:
      text: contents of the file.
      path: where it was read, for messages.

    Raises:
      DataError: the text is damaged or of another format version.
    """
    try:
        values = json.loads(text)
        version = values["format_version"]
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(path, error) from error
    if version != schema.FORMAT_VERSION:
        raise DataError(
            f"{path} must have format version {schema.FORMAT_VERSION}. "
            f"Received: {version!r}. Preprocess the input again with this gpt2-tpu."
        )
    try:
        return _from_values(checksums.unsealed(values))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: str, error: Exception) -> DataError:
    return DataError(
        f"{path} is damaged: {error!r}. Copy the dataset again, or preprocess it again "
        "with --overwrite."
    )


def _from_values(values: dict[str, Any]) -> Manifest:
    splits = {}
    for name, split in values["splits"].items():
        shards = tuple(Shard(**shard) for shard in split["shards"])
        for shard in shards:
            # A name must not be a path that leads out of the folder.
            if not re.fullmatch(r"[a-z]+-\d{5}-of-\d{5}\.tfrecord", shard.name):
                raise KeyError(f"shard name {shard.name!r}")
        splits[name] = Split(**{**split, "shards": shards})
    tuples = {
        name: tuple(values.get(name, ())) for name in ("added_tokens", "label_names")
    }
    return Manifest(**{**values, **tuples, "splits": splits})
