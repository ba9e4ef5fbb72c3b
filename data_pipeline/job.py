"""The job: all that the bytes of a dataset depend on, known before any work is done."""

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
from data_pipeline import finished_work
from data_pipeline.documents.chunk import Chunk, group, split_of
from data_pipeline.documents.detokenizer import detokenize
from data_pipeline.sources import finding, pieces
from data_pipeline.sources.input_files import InputFile, Piece
from tfrecords import order

# A chunk is a 64th of the input, within these bounds.
_CHUNKS = 64
_MIN_CHUNK_BYTES = 1 << 20
_MAX_CHUNK_BYTES = 16 << 20
_LARGE_CORPUS_BYTES = 100_000_000
# Engines are compared on so many characters, from so many chunks.
_SAMPLE_CHARACTERS = 1 << 18
_SAMPLE_CHUNKS = 64
# Fields that older datasets lack: a manifest does not mention them at their defaults.
_NEW_FIELDS = (
    *("null_text", "tokenizer_model", "prompt_field", "completion_field"),
    *("completions_per_record", "align", "messages_field"),
)


@dataclasses.dataclass(frozen=True)
class Job:
    """All that the bytes of the dataset depend on.

    Attributes:
      config: the settings.
      n_positions: of the model; a new tokenizer records it.
      train_files: the input, sorted by path.
      validation_files: of `--validation_input`, sorted by path.
      validation_fraction: share of the documents of `train_files` held out.
      chunk_bytes: text that a worker tokenizes at once, whatever the number of workers.
    """

    config: DataConfig
    n_positions: int
    train_files: list[InputFile]
    validation_files: list[InputFile]
    validation_fraction: float
    chunk_bytes: int

    @functools.cached_property
    def chunks(self) -> list[Chunk]:
        """The whole input in chunks, those of `validation_files` last."""
        # Names of files, which may be many, do not travel to the workers. The last two
        # change no token: what a run without them has finished is used again.
        config = dataclasses.replace(
            self.config,
            input="",
            validation_input="",
            tokenizer="",
            allow_lossy_tokenizer=False,
            attention=DataConfig.attention,
        )
        chunks: list[Chunk] = []
        for files, fraction in (
            (self.train_files, self.validation_fraction),
            (self.validation_files, 1.0),
        ):
            cut: list[Piece] = []
            for file in files:
                cut += pieces.cut(file, self.config, self.chunk_bytes)
            for grouped in group(cut, self.chunk_bytes):
                name = f"chunk-{len(chunks):05d}"
                chunks.append(Chunk(name, grouped, fraction, config))
        return chunks

    def training_texts(self) -> Iterator[str]:
        """Yields the text that a new tokenizer learns from: of the training split only.

        Of an input larger than `tokenizer_sample_mebibytes` it yields whole chunks,
        chosen by the seed, up to that size.
        """
        chunks = [chunk for chunk in self.chunks if chunk.validation_fraction < 1]
        remaining_bytes = self.config.tokenizer_sample_mebibytes << 20
        if sum(chunk.num_bytes for chunk in chunks) > remaining_bytes:
            logging.info(
                "the tokenizer learns from a sample of %d bytes", remaining_bytes
            )
            places = order.permutation(len(chunks), self.config.seed)
            chunks = [chunks[place] for place in places]
        for chunk in chunks:
            for document in chunk.documents():
                split = split_of(document, self.validation_fraction)
                if document.skipped or split != "train":
                    continue
                for part in document.parts:
                    yield detokenize(part.decode(), self.config.detokenizer)
                    remaining_bytes -= len(part)
                    if remaining_bytes <= 0:
                        return

    def sample_texts(self) -> list[bytes]:
        """Returns texts, UTF-8, from all over the input, to compare tokenizers on."""
        chosen = self.chunks[:: -(-len(self.chunks) // _SAMPLE_CHUNKS)]
        texts = []
        for chunk in chosen:
            remaining = _SAMPLE_CHARACTERS // len(chosen)
            for document in pieces.read(chunk.pieces[0], self.config):
                part = next(iter(document.parts))
                text = detokenize(part.decode(), self.config.detokenizer)[:remaining]
                texts.append(text.encode())
                remaining -= len(text)
                if remaining <= 0:
                    break
        return texts

    def description(self) -> dict[str, Any]:
        """Returns what the manifest records of the job: contents, not paths."""
        config = dataclasses.asdict(self.config)
        del config["input"], config["validation_input"], config["tfds_data_dir"]
        del config["allow_lossy_tokenizer"], config["attention"]
        config["validation_fraction"] = self.validation_fraction
        config["n_positions"] = self.n_positions
        for name in _NEW_FIELDS:
            if config[name] == getattr(DataConfig(), name):
                del config[name]
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
        """Names the fields in which another job, read from JSON, differs."""
        mine = json.loads(json.dumps(self.description()))
        keys = {*mine, *_NEW_FIELDS}
        return sorted(key for key in keys if mine.get(key) != description.get(key))


def plan_job(config: Config, *, min_chunk_bytes: int = _MIN_CHUNK_BYTES) -> Job:
    """Finds the input and decides what the config leaves open.

    Args:
      config: valid.
      min_chunk_bytes: size of a chunk of a small input.

    Raises:
      DataError: the input is missing, empty, or cannot be split.
    """
    data = config.data
    train_files = finding.find_files(data.input, data, flag="input")
    validation_files: list[InputFile] = []
    fraction = 0.0
    if data.validation_input:
        validation_files = finding.find_files(
            data.validation_input, data, flag="validation_input"
        )
        _check_disjoint(train_files, validation_files)
    else:
        size = sum(file.num_bytes for file in train_files)
        fraction = 0.01 if size >= _LARGE_CORPUS_BYTES else 0.1
        if data.validation_fraction is not None:
            fraction = data.validation_fraction
        if fraction and data.document == "file" and len(train_files) == 1:
            _check_is_many_documents(train_files[0])
    size = sum(file.num_bytes for file in train_files + validation_files)
    return Job(
        config=data,
        n_positions=config.model.n_positions,
        train_files=train_files,
        validation_files=validation_files,
        validation_fraction=fraction,
        chunk_bytes=min(max(size // _CHUNKS, min_chunk_bytes), _MAX_CHUNK_BYTES),
    )


def _check_disjoint(
    train_files: list[InputFile], validation_files: list[InputFile]
) -> None:
    path_of = {file.sha256: file.path for file in train_files}
    for file in validation_files:
        if file.num_bytes and file.sha256 in path_of:
            raise DataError(
                "`--validation_input` must not be part of `--input`. Received: "
                f"{file.path} for validation, {path_of[file.sha256]} for training. "
                "Name the training files alone."
            )


def _check_is_many_documents(file: InputFile) -> None:
    if file.format == finding.PLAIN_TEXT:
        raise DataError(
            "`--input` must hold several documents, some of which are held out for "
            f"validation. Received: {file.path}, which is one file, and so one "
            "document. Give --validation_input, or cut it with "
            "--config.data.document=paragraph or =line, or train without validation "
            "by --config.data.validation_fraction=0."
        )


def _folder_hash(folder: str) -> str:
    """Returns the fingerprint of a tokenizer's files: settings change tokens, too."""
    files = [
        path
        for pattern in ("*.json", "merges.txt", "vocab.txt", "*.model", "*.jinja")
        for path in sorted(pathlib.Path(folder).glob(pattern))
    ]
    return finished_work.fingerprint(
        *(part for f in files for part in (f.name, f.read_bytes()))
    )
