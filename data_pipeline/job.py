"""What is to be made of what: the job, settled before any work is done."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from absl import logging

from configs.errors import DataError
from configs.schema import Config, DataConfig
from data_pipeline import chunks, markers, readers, sources
from data_pipeline.detokenizer import detokenize
from tfrecords import order

# A chunk is a 64th of the input, within these bounds.
_MIN_CHUNK_BYTES = 1 << 20
_MAX_CHUNK_BYTES = 16 << 20
_LARGE_CORPUS_BYTES = 100_000_000
# The engines are compared on so much text, from so many places of the input.
_SAMPLE_CHARACTERS = 1 << 18
_SAMPLE_CHUNKS = 64


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be made of what: all that the bytes of the dataset depend on."""

    config: DataConfig
    n_positions: int
    train_files: list[sources.InputFile]
    validation_files: list[sources.InputFile]
    validation_fraction: float  # of the documents of `train_files`

    @property
    def chunk_bytes(self) -> int:
        """Text that one worker tokenizes at once; does not depend on their number."""
        size = sum(f.num_bytes for f in self.train_files + self.validation_files)
        return min(max(size // 64, _MIN_CHUNK_BYTES), _MAX_CHUNK_BYTES)

    @functools.cached_property
    def groups(self) -> list[tuple[tuple[sources.Piece, ...], float]]:
        """The pieces of each chunk, and the share of its documents for validation."""
        found = []
        for files, fraction in (
            (self.train_files, self.validation_fraction),
            (self.validation_files, 1.0),
        ):
            pieces: list[sources.Piece] = []
            for file in files:
                pieces += sources.cut(file, self.config, self.chunk_bytes)
            groups = chunks.group(pieces, self.chunk_bytes)
            found += [(group, fraction) for group in groups]
        return found

    def training_texts(self) -> Iterator[str]:
        """Yields what a new tokenizer learns from: nothing of the validation split.

        Of an input beyond `tokenizer_sample_mebibytes` it yields whole chunks, chosen
        by the seed, and stops at that size.
        """
        groups = [pieces for pieces, fraction in self.groups if fraction < 1]
        pieces = [piece for group in groups for piece in group]
        left = self.config.tokenizer_sample_mebibytes << 20
        if sum(piece.end - piece.start for piece in pieces) > left:
            logging.info("the tokenizer learns from a sample of %d bytes", left)
            places = order.permutation(len(groups), self.config.seed)
            pieces = [piece for place in places for piece in groups[place]]
        for piece in pieces:
            for document in readers.read(piece, self.config):
                split = chunks.split_of(document, self.validation_fraction)
                if document.skipped or split != "train":
                    continue
                for part in document.parts:
                    yield detokenize(part.decode(), self.config.detokenizer)
                    left -= len(part)
                    if left <= 0:
                        return

    def sample_texts(self) -> list[bytes]:
        """Returns texts, UTF-8, of the whole input, to compare tokenizers on."""
        groups = [pieces for pieces, _ in self.groups]
        chosen = groups[:: -(-len(groups) // _SAMPLE_CHUNKS)]
        texts = []
        for group in chosen:
            left = _SAMPLE_CHARACTERS // len(chosen)
            for document in readers.read(group[0], self.config):
                for part in document.parts:
                    text = detokenize(part.decode(), self.config.detokenizer)[:left]
                    texts.append(text.encode())
                    left -= len(text)
                    break
                if left <= 0:
                    break
        return texts

    def description(self) -> dict[str, Any]:
        """What the manifest says of the job; paths do not count, contents do."""
        config = dataclasses.asdict(self.config)
        del config["input"], config["validation_input"], config["tfds_data_dir"]
        config["validation_fraction"] = self.validation_fraction
        config["n_positions"] = self.n_positions  # a new tokenizer records it
        if self.config.tokenizer != "train" and os.path.isdir(self.config.tokenizer):
            config["tokenizer"] = _folder_hash(self.config.tokenizer)
        names = {"input": self.train_files, "validation_input": self.validation_files}
        for name, files in names.items():
            config[name] = [
                [os.path.basename(file.path), file.num_bytes, file.sha256]
                for file in files
            ]
        return config

    def differences(self, description: dict[str, Any]) -> list[str]:
        """Names the fields in which another job, read from JSON, is not this one."""
        mine = json.loads(json.dumps(self.description()))
        return sorted(key for key in mine if mine[key] != description.get(key))


def _folder_hash(folder: str) -> str:
    """Of a tokenizer's files: also their settings change what it gives."""
    files = sorted(pathlib.Path(folder).glob("*.json"))
    files += sorted(pathlib.Path(folder).glob("merges.txt"))
    return markers.fingerprint(
        *(part for f in files for part in (f.name, f.read_bytes()))
    )


def _check_is_many_documents(file: sources.InputFile) -> None:
    if file.format == "text":
        raise DataError(
            f"`--input` is one file, {file.path}, and so one document, of which "
            "nothing can be held out for validation. Give --validation_input, or cut "
            "it with --config.data.document=paragraph or =line, or train without "
            "validation by --config.data.validation_fraction=0."
        )


def plan(config: Config) -> Job:
    """Finds the input and settles what the config leaves open."""
    data = config.data
    find = functools.partial(sources.find_files, tfds_data_dir=data.tfds_data_dir)
    train_files = find(data.input, "input")
    if data.validation_input:
        validation_files = find(data.validation_input, "validation_input")
        fraction = 0.0
        trained_on = {file.sha256: file.path for file in train_files}
        for file in validation_files:
            if file.num_bytes and file.sha256 in trained_on:
                raise DataError(
                    "`--validation_input` must not be part of `--input`. Received: "
                    f"{file.path} for validation, {trained_on[file.sha256]} for "
                    "training. Name the training files alone."
                )
    else:
        validation_files = []
        size = sum(file.num_bytes for file in train_files)
        fraction = 0.01 if size >= _LARGE_CORPUS_BYTES else 0.1
        if data.validation_fraction is not None:
            fraction = data.validation_fraction
        if fraction and data.document == "file" and len(train_files) == 1:
            _check_is_many_documents(train_files[0])
    return Job(data, config.model.n_positions, train_files, validation_files, fraction)
