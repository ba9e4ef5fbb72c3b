"""First pass: a chunk of the input -> token files, one for each split.

A chunk is a work item: it does not depend on other chunks, and doing it twice gives the
same files. Packed, a token file is a stream. Of documents it is a row of
`sequence_length` tokens for each, with a file of lengths and one of labels.
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

import numpy as np

from configs.schema import DataConfig
from data_pipeline import (
    documents,
    encoder,
    markers,
    readers,
    sources,
    words,
)
from data_pipeline.detokenizer import detokenize
from tfrecords.manifest import Counts
from tfrecords.storage import files

SPLITS = ("train", "validation")
DUPLICATE = "duplicate"
# The files of a split, and what they hold beside the tokens.
TOKENS, LENGTHS, LABELS = "tokens", "lengths", "labels"
SIDE_DTYPES = {LENGTHS: np.dtype("<u4"), LABELS: np.dtype("<i4")}


@dataclasses.dataclass(frozen=True)
class Chunk:
    """What one worker tokenizes at once, and where the result goes.

    `validation_fraction` is the share of documents for the validation split: 0 or 1
    where the whole input belongs to one split. `duplicates` holds the numbers of the
    chunk's documents that are left out.
    """

    path: str  # of the result, without the ending
    pieces: tuple[sources.Piece, ...]
    validation_fraction: float
    config: DataConfig
    tokenizer_path: str
    tokenizer_fingerprint: str
    engine: str
    vocabulary: encoder.Vocabulary
    token_dtype: str
    duplicates: tuple[int, ...] = ()

    @property
    def num_bytes(self) -> int:
        return sum(piece.end - piece.start for piece in self.pieces)

    @property
    def fingerprint(self) -> str:
        """Of all that the result depends on; paths and the engine do not count."""
        config = dataclasses.asdict(self.config)
        for name in ("input", "validation_input", "tokenizer"):
            del config[name]
        return markers.fingerprint(
            [[p.file.sha256, p.file.format, p.start, p.end] for p in self.pieces],
            self.validation_fraction,
            config,
            self.tokenizer_fingerprint,
            dataclasses.asdict(self.vocabulary),
            self.token_dtype,
            self.duplicates,
        )


def total(counts: Iterable[Counts]) -> Counts:
    """Adds up what chunks hold."""
    added = Counts()
    for more in counts:
        for field in dataclasses.fields(Counts):
            mine, theirs = getattr(added, field.name), getattr(more, field.name)
            if isinstance(mine, dict):
                setattr(added, field.name, dict(Counter(mine) + Counter(theirs)))
            else:
                setattr(added, field.name, mine + theirs)
    return added


def file_path(chunk_path: str, split: str, kind: str) -> str:
    return f"{chunk_path}.{split}.{kind}"


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


def split_of(document: documents.Document, validation_fraction: float) -> str:
    """Assigns a document to a split by its hash: adding others does not move it."""
    if validation_fraction in (0, 1):
        return SPLITS[int(validation_fraction)]
    share = int.from_bytes(document.identity[:8], "little") / 2**64
    return "validation" if share < validation_fraction else "train"


def tokenize(chunk: Chunk) -> tuple[Chunk, dict[str, Counts]]:
    """Writes the chunk's files, unless that is done; returns each split's counts."""
    marker, item = f"{chunk.path}.json", chunk.fingerprint
    result = markers.load(marker, item)
    if result is None:
        paths, result = _tokenize(chunk)
        markers.save(marker, item, paths, result)
    return chunk, {split: Counts(**values) for split, values in result.items()}


def _tokenize(chunk: Chunk) -> tuple[list[str], dict]:
    kinds = [TOKENS]
    if chunk.config.mode != "packed":
        kinds = [TOKENS, LENGTHS, LABELS]
    paths = [file_path(chunk.path, split, kind) for split in SPLITS for kind in kinds]
    with contextlib.ExitStack() as stack:
        streams = [
            stack.enter_context(open(stack.enter_context(files.writing(path)), "wb"))
            for path in paths
        ]
        writers = {
            split: _SplitWriter(chunk, streams[start : start + len(kinds)])
            for split, start in zip(SPLITS, (0, len(kinds)), strict=True)
        }
        left_out = set(chunk.duplicates)
        for number, document in enumerate(read_documents(chunk)):
            if number in left_out and not document.skipped:
                document.skipped = DUPLICATE
            writers[split_of(document, chunk.validation_fraction)].add(document)
        for writer in writers.values():
            writer.flush()
    return paths, {s: dataclasses.asdict(w.counts) for s, w in writers.items()}


def read_documents(chunk: Chunk) -> Iterator[documents.Document]:
    for piece in chunk.pieces:
        yield from readers.read(piece, chunk.config)


class _SplitWriter:
    """Encodes documents of one split in batches, writes them and counts.

    Args:
      chunk: what is tokenized.
      streams: open for the tokens and, but for packed data, lengths and labels.
    """

    def __init__(self, chunk: Chunk, streams: Sequence[IO[bytes]]):
        self.counts = Counts()
        self._chunk = chunk
        self._streams = streams
        self._encoder = encoder.load(
            chunk.tokenizer_path,
            chunk.tokenizer_fingerprint,
            chunk.engine,
            allow_special_tokens=chunk.config.allow_special_tokens,
        )
        self._detokenizer = chunk.config.detokenizer
        # What was encoded of the document that goes on in the next batch.
        self._row = np.empty(0, chunk.token_dtype)
        self._row_tokens = 0
        self._texts: list[bytes] = []
        self._unfinished: list[int] = []
        self._clear()

    def add(self, document: documents.Document) -> None:
        if document.skipped:
            _count(self.counts.skipped, [document.skipped])
            return
        self.counts.documents += 1
        parts = map(self._detokenized, document.parts)
        texts = self._encoder.blocks(parts)
        text = next(texts)
        for following in texts:
            self._unfinished.append(len(self._texts))
            self._append(text)
            text = following
        self._labels.append(document.label)
        self._append(text)
        if document.noticed:
            _count(self.counts.repaired, document.noticed & documents.REPAIRED)
            _count(self.counts.kept, document.noticed & documents.KEPT)

    def flush(self) -> None:
        """Encodes, writes and counts what waits."""
        if not self._texts:
            return
        text = b"\n".join(self._originals)
        self.counts.words += words.count(text)
        self.counts.bytes += len(text) - max(len(self._originals) - 1, 0)

        tokens, ends = self._encode()
        if self._chunk.config.mode == "packed":
            self.counts.tokens += len(tokens)
            self._streams[0].write(tokens.tobytes())
        else:
            start = 0
            for end, label in zip(ends, self._labels, strict=True):
                self._extend_row(tokens[start:end])
                self._write_row(label)
                start = end
            self._extend_row(tokens[start:])
        self._clear()

    def _clear(self) -> None:
        self._goes_on = len(self._texts) - 1 in self._unfinished
        self._texts = []
        # The texts whose document goes on in the next one.
        self._unfinished = []
        self._labels: list[int] = []  # of each document that ends
        self._size = 0
        # Words are counted in the text as it was.
        self._originals = [] if self._detokenizer != "none" else self._texts

    def _detokenized(self, part: bytes) -> bytes:
        if self._detokenizer == "none":
            return part
        self._originals.append(part)
        return detokenize(part.decode(), self._detokenizer).encode()

    def _append(self, text: bytes) -> None:
        self._texts.append(text)
        self._size += len(text)
        if self._size >= encoder.BLOCK_BYTES:
            self.flush()

    def _encode(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns all tokens, with start and end tokens, and where documents end."""
        vocabulary = self._chunk.vocabulary
        tokens, offsets = self._encoder.encode(self._texts)
        tokens = tokens.astype(self._chunk.token_dtype)
        specials = [vocabulary.start_id, vocabulary.end_id]
        # One place before and one after each text, in the order of the stream.
        finished = np.ones(len(self._texts), bool)
        finished[self._unfinished] = False
        begun = np.append(not self._goes_on, finished[:-1])
        wanted = np.stack([begun, finished], axis=1)
        wanted &= np.array([special is not None for special in specials])
        places = np.stack([offsets[:-1], offsets[1:]], axis=1)[wanted]
        ids = np.tile([special or 0 for special in specials], (len(wanted), 1))[wanted]
        tokens = np.insert(tokens, places, ids.astype(tokens.dtype))
        ends = offsets[1:] + np.cumsum(wanted.sum(axis=1))
        return tokens, ends[finished]

    def _extend_row(self, tokens: np.ndarray) -> None:
        room = self._chunk.config.sequence_length - len(self._row)
        self._row = np.concatenate([self._row, tokens[:room]])
        self._row_tokens += len(tokens)

    def _write_row(self, label: int) -> None:
        length, counts = len(self._row), self.counts
        missing = self._chunk.config.sequence_length - length
        left = self._chunk.config.padding_side == "left"
        sides = (missing, 0) if left else (0, missing)
        pad_id = self._chunk.vocabulary.pad_id
        row = np.pad(self._row, sides, constant_values=pad_id)
        token_file, length_file, label_file = self._streams
        token_file.write(row.tobytes())
        length_file.write(np.array(length, SIDE_DTYPES[LENGTHS]).tobytes())
        label_file.write(np.array(label, SIDE_DTYPES[LABELS]).tobytes())
        counts.tokens += length
        counts.truncated_tokens += self._row_tokens - length
        counts.truncated_documents += self._row_tokens > length
        if self._chunk.config.mode == "labelled":
            _count(counts.labels, [str(label)])
        self._row, self._row_tokens = self._row[:0], 0


def _count(counts: dict[str, int], names: Iterable[str]) -> None:
    for name in names:
        counts[name] = counts.get(name, 0) + 1
