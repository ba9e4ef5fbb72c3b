"""First pass: a chunk of documents -> token files, one set for each split.

Packed, a token file is a stream of tokens. Otherwise it has a row of `sequence_length`
tokens for each document, beside a file of lengths and one of labels. A label is there
the number of its name among those that the item's counts have for the split. Completion
data also has a file of masks, and may have several documents in a row.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import IO

import numpy as np

from data_pipeline import finished_work
from data_pipeline.documents import document as documents
from data_pipeline.documents import words
from data_pipeline.documents.chunk import SPLITS, Chunk, split_of
from data_pipeline.documents.detokenizer import detokenize
from data_pipeline.documents.document import Document
from data_pipeline.tokens import completions, encoder
from data_pipeline.tokens.encoder import StoredTokenizer
from tfrecords.manifest import Counts
from tfrecords.schema import token_dtype
from tfrecords.storage import files

# The files of a split.
TOKENS, LENGTHS, LABELS, MASKS = "tokens", "lengths", "labels", "masks"
SIDE_DTYPES = {LENGTHS: np.dtype("<u4"), LABELS: np.dtype("<i4")}


@dataclasses.dataclass(frozen=True)
class TokenizeItem:
    """The work item of the first pass: tokenizes a chunk."""

    chunk: Chunk
    folder: str  # of the files that are made
    tokenizer: StoredTokenizer
    duplicates: tuple[int, ...] = ()  # numbers of documents to leave out

    @property
    def path(self) -> str:
        """Path of the files, without their endings."""
        return f"{self.folder}/{self.chunk.name}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that the files depend on: not paths, nor the engine."""
        labels = [LABELS] if self.chunk.config.mode == "labelled" else []
        return finished_work.fingerprint(
            *labels,  # earlier versions wrote the labels themselves
            self.chunk.fingerprint,
            self.tokenizer.sha256,
            dataclasses.asdict(self.tokenizer.vocabulary),
            self.duplicates,
        )


def add_counts(counts: Iterable[Counts]) -> Counts:
    """Returns the sums of what several chunks hold."""
    total = Counts()
    for count in counts:
        for field in dataclasses.fields(Counts):
            value = getattr(count, field.name)
            if isinstance(value, dict):
                _count(getattr(total, field.name), value)
            else:
                setattr(total, field.name, getattr(total, field.name) + value)
    return total


def file_path(item_path: str, split: str, kind: str) -> str:
    """Returns the path of the file of TOKENS, LENGTHS or LABELS of a split."""
    return f"{item_path}.{split}.{kind}"


def tokenize(item: TokenizeItem) -> dict[str, Counts]:
    """Writes the item's files, unless that is done; returns each split's counts."""
    work = functools.partial(_tokenize, item)
    result = finished_work.do_once(f"{item.path}.json", item.fingerprint, work)
    return {split: Counts(**values) for split, values in result.items()}


def _tokenize(item: TokenizeItem) -> tuple[list[str], dict]:
    mode = item.chunk.config.mode
    kinds = [TOKENS] if mode == "packed" else [TOKENS, *SIDE_DTYPES]
    if mode == "completion":
        kinds.append(MASKS)
    paths = [file_path(item.path, split, kind) for split in SPLITS for kind in kinds]
    with contextlib.ExitStack() as stack:
        streams = [
            stack.enter_context(open(stack.enter_context(files.writing(path)), "wb"))
            for path in paths
        ]
        writers = {
            split: _SplitWriter(item, streams[start : start + len(kinds)])
            for split, start in zip(SPLITS, (0, len(kinds)), strict=True)
        }
        duplicates = set(item.duplicates)
        for number, document in enumerate(item.chunk.documents()):
            if number in duplicates and not document.skipped:
                document.skipped = documents.DUPLICATE
            split = split_of(document, item.chunk.validation_fraction)
            writers[split].add(document)
        for writer in writers.values():
            writer.flush()
            writer.close()
    return paths, {s: dataclasses.asdict(w.counts) for s, w in writers.items()}


class _SplitWriter:
    """Encodes the documents of one split in batches, writes their tokens and counts.

    A batch is a list of texts. A text is a document, or a block of a large one, whose
    next block is the next text. A row is the tokens of one document.

    Args:
      item: what is tokenized.
      streams: for tokens and, unless data is packed, for lengths and labels; of
        completion data also for masks.
    """

    def __init__(self, item: TokenizeItem, streams: Sequence[IO[bytes]]):
        self.counts = Counts()
        self._config = item.chunk.config
        self._vocabulary = item.tokenizer.vocabulary
        self._dtype = token_dtype(self._vocabulary.size)
        self._streams = streams
        self._encoder = encoder.load(
            item.tokenizer, allow_special_tokens=self._config.allow_special_tokens
        )
        self._detokenizes = self._config.detokenizer != "none"
        # The beginning of the row whose document continues in the next batch.
        self._row = np.empty(0, self._dtype)
        self._row_tokens = 0  # also those that did not fit into the row
        # 1 for what is learnt of the row.
        self._mask = np.empty(0, completions.MASK_DTYPE)
        self._label_numbers: dict[str, int] = {}
        self._start_batch(continues=False)

    def add(self, document: Document) -> None:
        """Adds a document to the batch, which is written when it is large enough."""
        if document.skipped:
            _count(self.counts.skipped, {document.skipped: 1})
            return
        self.counts.documents += 1
        self._count_oddities(document)
        if self._config.mode == "completion":
            (text,) = document.parts
            prompt = text[: document.num_prompt_bytes]
            # Both are encoded by themselves, as a prompt is when text is generated.
            self._texts += [*map(self._detokenized, (prompt, text[len(prompt) :]))]
            self._finished += [False, True]
            self._num_bytes += len(text)
            if self._num_bytes >= encoder.BLOCK_BYTES:
                self.flush()
            return
        blocks = self._encoder.blocks(map(self._detokenized, document.parts))
        text = next(blocks)
        for next_block in blocks:
            self._append(text, continues=True)
            text = next_block
        self._labels.append(document.label)
        self._append(text, continues=False)

    def _count_oddities(self, document: Document) -> None:
        if document.oddities:
            for counts, names in (
                (self.counts.repaired, documents.REPAIRED),
                (self.counts.kept, documents.KEPT),
            ):
                _count(counts, dict.fromkeys(document.oddities & names, 1))

    def flush(self) -> None:
        """Encodes, writes and counts the batch."""
        if not self._texts:
            return
        original = b"\n".join(self._originals)
        text = b"\n".join(self._texts) if self._detokenizes else original
        num_special = self._encoder.count_special_tokens_as_text(text)
        if num_special:
            _count(self.counts.kept, {documents.SPECIAL_TOKEN_AS_TEXT: num_special})
        self.counts.words += words.count(original)
        self.counts.bytes += len(original) - max(len(self._originals) - 1, 0)

        tokens, ends = self._encode()
        if self._config.mode == "packed":
            self.counts.tokens += len(tokens)
            self._streams[0].write(tokens.tobytes())
        elif self._config.mode == "completion":
            parts = np.split(tokens, ends[:-1])
            for prompt, completion in zip(parts[::2], parts[1::2], strict=True):
                self._add_example(prompt, completion)
        else:
            start = 0
            documents_ends = ends[np.array(self._finished)]
            for end, label in zip(documents_ends, self._labels, strict=True):
                self._extend_row(tokens[start:end])
                self._write_row(label)
                start = end
            self._extend_row(tokens[start:])
        self._start_batch(continues=not self._finished[-1])

    def _start_batch(self, *, continues: bool) -> None:
        self._continues = continues  # the last document of the batch before
        self._texts: list[bytes] = []
        self._finished: list[bool] = []  # of each text: whether its document ends
        self._labels: list[str] = []  # of each document that ends
        self._num_bytes = 0
        # Words are counted in the text before it is detokenized.
        self._originals = [] if self._detokenizes else self._texts

    def _detokenized(self, part: bytes) -> bytes:
        if not self._detokenizes:
            return part
        self._originals.append(part)
        return detokenize(part.decode(), self._config.detokenizer).encode()

    def _append(self, text: bytes, *, continues: bool) -> None:
        self._texts.append(text)
        self._finished.append(not continues)
        self._num_bytes += len(text)
        if self._num_bytes >= encoder.BLOCK_BYTES:
            self.flush()

    def _encode(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns all tokens, with start and end tokens, and where texts end."""
        tokens, offsets = self._encoder.encode(self._texts)
        losses = self._encoder.count_losses(self._texts, tokens, offsets)
        for name, count in zip(documents.LOSSES, losses, strict=True):
            if count:
                _count(self.counts.kept, {name: count})
        tokens = tokens.astype(self._dtype)
        special_ids = [self._vocabulary.start_id, self._vocabulary.end_id]
        finished = np.array(self._finished)
        started = np.append(not self._continues, finished[:-1])
        # [num_texts, 2]: whether a special token goes before and after each text.
        inserted = np.stack([started, finished], axis=1)
        inserted &= np.array([special_id is not None for special_id in special_ids])
        places = np.stack([offsets[:-1], offsets[1:]], axis=1)[inserted]
        ids = np.tile([i or 0 for i in special_ids], (len(inserted), 1))[inserted]
        tokens = np.insert(tokens, places, ids.astype(tokens.dtype))
        ends = offsets[1:] + np.cumsum(inserted.sum(axis=1))
        return tokens, ends

    def _add_example(self, prompt: np.ndarray, completion: np.ndarray) -> None:
        """Puts an example into the row, or into a new one where it does not fit."""
        length, counts = self._config.sequence_length, self.counts
        tokens, mask = completions.fit(prompt, completion, length)
        num_cut = len(prompt) + len(completion) - len(tokens)
        counts.truncated_tokens += num_cut
        counts.truncated_documents += num_cut > 0
        is_full = len(self._row) + len(tokens) > length
        if is_full or self._config.completions_per_record == "one":
            self.close()
        self._row = np.concatenate([self._row, tokens])
        self._mask = np.concatenate([self._mask, mask])
        self._row_tokens = len(self._row)

    def close(self) -> None:
        """Writes the row of completion data, where something is in it."""
        if len(self._mask):
            self._write_row("")

    def _extend_row(self, tokens: np.ndarray) -> None:
        room = self._config.sequence_length - len(self._row)
        self._row = np.concatenate([self._row, tokens[:room]])
        self._row_tokens += len(tokens)

    def _write_row(self, label: str) -> None:
        length, counts = len(self._row), self.counts
        missing = self._config.sequence_length - length
        left = self._config.padding_side == "left"
        sides = (missing, 0) if left else (0, missing)
        row = np.pad(self._row, sides, constant_values=self._vocabulary.pad_id)
        token_file, length_file, label_file, *mask_files = self._streams
        for mask_file in mask_files:
            mask_file.write(np.pad(self._mask, sides).tobytes())
            counts.rows += 1
            self._mask = self._mask[:0]
        token_file.write(row.tobytes())
        length_file.write(np.array(length, SIDE_DTYPES[LENGTHS]).tobytes())
        number = self._label_numbers.setdefault(label, len(self._label_numbers))
        label_file.write(np.array(number, SIDE_DTYPES[LABELS]).tobytes())
        counts.tokens += length
        counts.truncated_tokens += self._row_tokens - length
        counts.truncated_documents += self._row_tokens > length
        if self._config.mode == "labelled":
            _count(counts.labels, {label: 1})
        self._row, self._row_tokens = self._row[:0], 0


def _count(counts: dict[str, int], others: dict[str, int]) -> None:
    for name, count in others.items():
        counts[name] = counts.get(name, 0) + count
