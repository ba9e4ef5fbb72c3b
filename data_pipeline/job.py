"""What is to be made of what: the job, settled before any work is done."""

import dataclasses
import json
import os
from collections.abc import Iterator
from typing import Any

from configs.schema import Config, DataConfig
from data_pipeline import chunks, sources
from data_pipeline.detokenizer import detokenize
from tfrecords import manifest

# A chunk is a 64th of the input, within these bounds.
_MIN_CHUNK_BYTES = 1 << 20
_MAX_CHUNK_BYTES = 16 << 20
_LARGE_CORPUS_BYTES = 100_000_000


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

    def pieces(self, files: list[sources.InputFile]) -> Iterator[sources.Piece]:
        for file in files:
            yield from sources.cut(file, self.config, self.chunk_bytes)

    def training_documents(self) -> Iterator[str]:
        """Yields what a new tokenizer learns from: nothing of the validation split."""
        for piece in self.pieces(self.train_files):
            for document in sources.read_documents(piece, self.config):
                if chunks.split_of(document, self.validation_fraction) == "train":
                    yield detokenize(document, self.config.detokenizer)

    def description(self) -> dict[str, Any]:
        """What the manifest says of the job; paths do not count, contents do."""
        config = dataclasses.asdict(self.config)
        del config["input"], config["validation_input"]
        config["validation_fraction"] = self.validation_fraction
        config["n_positions"] = self.n_positions  # a new tokenizer records it
        if os.path.isdir(self.config.tokenizer):
            config["tokenizer"] = manifest.tokenizer_fingerprint(self.config.tokenizer)
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


def plan(config: Config) -> Job:
    """Finds the input and settles what the config leaves open."""
    data = config.data
    train_files = sources.find_files(data.input, "input")
    if data.validation_input:
        validation_files = sources.find_files(data.validation_input, "validation_input")
        fraction = 0.0
        trained_on = {file.sha256: file.path for file in train_files}
        for file in validation_files:
            if file.sha256 in trained_on:
                raise sources.InputError(
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
    return Job(data, config.model.n_positions, train_files, validation_files, fraction)
