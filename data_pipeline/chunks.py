"""First pass: a chunk of the input -> token files, one for each split.

A chunk is a work item: it does not depend on other chunks, and doing it twice gives the
same files. Its counts are written last; a chunk that has counts is not done again.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator

import numpy as np
import tokenizers

from configs.schema import DataConfig
from data_pipeline import sources
from data_pipeline.detokenizer import detokenize

# Text given to the tokenizer at once.
_BATCH_CHARACTERS = 1 << 20


@dataclasses.dataclass(frozen=True)
class Chunk:
    """What one worker tokenizes at once, and where the result goes.

    `validation_fraction` is the share of documents for the validation split: 0 or 1
    where the whole input belongs to one split.
    """

    path: str  # of the result, without the ending
    pieces: tuple[sources.Piece, ...]
    validation_fraction: float
    config: DataConfig
    tokenizer_folder: str
    token_dtype: str
    end_of_text_id: int

    @property
    def num_bytes(self) -> int:
        return sum(piece.end - piece.start for piece in self.pieces)


@dataclasses.dataclass
class Counts:
    """What a chunk holds of one split; words and bytes are of the original text."""

    documents: int = 0
    words: int = 0
    bytes: int = 0
    tokens: int = 0


def token_path(chunk: Chunk, split: str) -> str:
    return f"{chunk.path}.{split}.tokens"


def group(
    pieces: list[sources.Piece], chunk_bytes: int
) -> list[tuple[sources.Piece, ...]]:
    """Groups consecutive pieces until a group has `chunk_bytes`."""
    groups: list[tuple[sources.Piece, ...]] = []
    current: list[sources.Piece] = []
    size = 0
    for piece in pieces:
        current.append(piece)
        size += piece.end - piece.start
        if size >= chunk_bytes:
            groups.append(tuple(current))
            current, size = [], 0
    if current:
        groups.append(tuple(current))
    return groups


def split_of(document: str, validation_fraction: float) -> str:
    """Assigns a document to a split by its hash: adding others does not move it."""
    digest = hashlib.blake2b(document.encode("utf-8"), digest_size=8).digest()
    share = int.from_bytes(digest, "little") / 2**64
    return "validation" if share < validation_fraction else "train"


def tokenize(chunk: Chunk) -> tuple[Chunk, dict[str, Counts]]:
    """Writes the chunk's token files and counts; returns the counts for each split."""
    counts_path = f"{chunk.path}.json"
    if os.path.exists(counts_path):
        with open(counts_path) as stream:
            stored = json.load(stream)
        return chunk, {split: Counts(**values) for split, values in stored.items()}

    counts = {"train": Counts(), "validation": Counts()}
    with contextlib.ExitStack() as stack:
        files = {
            split: stack.enter_context(open(token_path(chunk, split), "wb"))
            for split in counts
        }
        for split, texts in _batches(chunk, counts):
            tokens = _encode(texts, chunk)
            counts[split].tokens += len(tokens)
            files[split].write(tokens.tobytes())
    with open(counts_path + ".partial", "w") as stream:
        json.dump({s: dataclasses.asdict(c) for s, c in counts.items()}, stream)
    os.replace(counts_path + ".partial", counts_path)
    return chunk, counts


def _batches(
    chunk: Chunk, counts: dict[str, Counts]
) -> Iterator[tuple[str, list[str]]]:
    """Yields (split, texts to encode) and counts the documents on their way."""
    waiting: dict[str, list[str]] = {"train": [], "validation": []}
    sizes = {"train": 0, "validation": 0}
    for piece in chunk.pieces:
        for document in sources.read_documents(piece, chunk.config):
            split = split_of(document, chunk.validation_fraction)
            counts[split].documents += 1
            counts[split].words += len(document.split())
            counts[split].bytes += len(document.encode("utf-8"))
            waiting[split].append(detokenize(document, chunk.config.detokenizer))
            sizes[split] += len(document)
            if sizes[split] >= _BATCH_CHARACTERS:
                yield split, waiting[split]
                waiting[split], sizes[split] = [], 0
    yield from waiting.items()


def _encode(texts: list[str], chunk: Chunk) -> np.ndarray:
    """Returns the tokens of all texts, each followed by end-of-text."""
    dtype = np.dtype(chunk.token_dtype)
    encodings = load_encoder(chunk.tokenizer_folder).encode_batch_fast(
        texts, add_special_tokens=False
    )
    end = np.array([chunk.end_of_text_id], dtype)
    parts = [part for e in encodings for part in (np.array(e.ids, dtype), end)]
    return np.concatenate(parts) if parts else end[:0]


@functools.lru_cache(maxsize=1)
def load_encoder(folder: str) -> tokenizers.Tokenizer:
    """Loads the stored tokenizer for encoding, without importing transformers."""
    encoder = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    # A literal "<|endoftext|>" in the text is text: no document can end another.
    encoder.encode_special_tokens = True
    encoder.no_truncation()
    encoder.no_padding()
    return encoder
