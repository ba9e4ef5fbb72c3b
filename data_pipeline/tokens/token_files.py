"""First pass: a chunk of documents -> token files, one set for each split.

Packed, a token file is a stream of tokens. Otherwise it has a row of `sequence_length`
tokens for each document, beside a file of lengths and one of labels. A label is there
the number of its name among those that the item's counts have for the split. Completion
data also has a file of masks. It may have several documents in a row, and so has packed
data whose records begin at documents.
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
from data_pipeline.tokens import chat, encoder, rows
from data_pipeline.tokens.completions import MASK_DTYPE
from data_pipeline.tokens.encoder import StoredTokenizer
from data_pipeline.tokens.rows import RowWriter
from tfrecords.manifest import Counts
from tfrecords.schema import token_dtype
from tfrecords.storage import files

# The files of a split.
TOKENS, LENGTHS, LABELS, MASKS = "tokens", "lengths", "labels", "masks"
SIDE_DTYPES = {LENGTHS: rows.LENGTH_DTYPE, LABELS: rows.LABEL_DTYPE}


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
    config = item.chunk.config
    kinds = [TOKENS] if config.is_stream else [TOKENS, *SIDE_DTYPES]
    if config.mode == "completion":
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
            writer.close()
    return paths, {s: dataclasses.asdict(w.counts) for s, w in writers.items()}


class _SplitWriter:
    """Encodes the documents of one split in batches, writes their tokens and counts.

    A batch is a list of texts. A text is a document, or a block of a large one, whose
    next block is the next text.

    Args:
      item: what is tokenized.
      streams: for tokens and, unless data is one stream, lengths and labels; of
        completion data also for masks.
    """

    def __init__(self, item: TokenizeItem, streams: Sequence[IO[bytes]]):
        self.counts = Counts()
        self._config = item.chunk.config
        self._tokenizer = item.tokenizer
        self._vocabulary = item.tokenizer.vocabulary
        self._dtype = token_dtype(self._vocabulary.size)
        self._streams = streams
        self._encoder = encoder.load(
            item.tokenizer, allow_special_tokens=self._config.allow_special_tokens
        )
        self._detokenizes = self._config.detokenizer != "none"
        self._rows = RowWriter(self._config, self._vocabulary, self.counts, streams)
        self._start_batch(continues=False)

    def add(self, document: Document) -> None:
        """Adds a document to the batch, which is written when it is large enough."""
        if document.skipped:
            _count(self.counts.skipped, {document.skipped: 1})
            return
        self.counts.documents += 1
        self._count_oddities(document)
        if self._config.messages_field:
            self._add_conversation(*document.parts)
            return
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

    def _add_conversation(self, messages: bytes) -> None:
        text, tokens, mask, num_special = chat.encode(
            messages,
            self._tokenizer,
            allow_special_tokens=self._config.allow_special_tokens,
        )
        self._count_text(text, num_special)
        self._count_losses([text], tokens, np.array([0, len(tokens)]))
        self._rows.add_example(tokens.astype(self._dtype), mask)

    def _count_text(self, text: bytes, num_special: int) -> None:
        self.counts.words += words.count(text)
        self.counts.bytes += len(text)
        if num_special:
            _count(self.counts.kept, {documents.SPECIAL_TOKEN_AS_TEXT: num_special})

    def _count_losses(
        self, texts: list[bytes], tokens: np.ndarray, offsets: np.ndarray
    ) -> None:
        losses = self._encoder.count_losses(texts, tokens, offsets)
        for name, count in zip(documents.LOSSES, losses, strict=True):
            if count:
                _count(self.counts.kept, {name: count})

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
        self._count_text(original, num_special)
        self.counts.bytes -= max(len(self._originals) - 1, 0)  # of the line ends

        tokens, ends = self._encode()
        if self._config.is_stream:
            self.counts.tokens += len(tokens)
            self._streams[0].write(tokens.tobytes())
        elif self._config.mode == "completion":
            parts = np.split(tokens, ends[:-1])
            for prompt, completion in zip(parts[::2], parts[1::2], strict=True):
                example = np.concatenate([prompt, completion])
                mask = (np.arange(len(example)) >= len(prompt)).astype(MASK_DTYPE)
                self._rows.add_example(example, mask)
        else:
            parts = np.split(tokens, ends[np.array(self._finished)])
            for part, label in zip(parts, [*self._labels, None], strict=True):
                self._rows.add_part(part, label)
        self._start_batch(continues=not self._finished[-1])

    def close(self) -> None:
        """Writes what is not written yet."""
        self.flush()
        self._rows.close()

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
        self._count_losses(self._texts, tokens, offsets)
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


def _count(counts: dict[str, int], others: dict[str, int]) -> None:
    for name, count in others.items():
        counts[name] = counts.get(name, 0) + count
