"""Writes rows of `sequence_length` tokens, where data is not one stream of tokens."""

from collections.abc import Sequence
from typing import IO

import numpy as np

from configs.schema import DataConfig
from data_pipeline.tokens import completions
from data_pipeline.tokens.encoder import Vocabulary
from tfrecords.manifest import Counts
from tfrecords.schema import token_dtype

LENGTH_DTYPE, LABEL_DTYPE = np.dtype("<u4"), np.dtype("<i4")


class RowWriter:
    """Pads the rows of one split, and writes and counts them.

    Args:
      config: says what a row is.
      vocabulary: of the tokenizer.
      counts: of the split, to which the rows are added.
      streams: for tokens, lengths and labels; of completion data also for masks.
    """

    def __init__(
        self,
        config: DataConfig,
        vocabulary: Vocabulary,
        counts: Counts,
        streams: Sequence[IO[bytes]],
    ):
        self._config = config
        self._pad_id = vocabulary.pad_id
        self._counts = counts
        self._streams = streams
        # The beginning of the row that is not written yet.
        self._row = np.empty(0, token_dtype(vocabulary.size))
        self._num_whole = 0  # tokens of documents that end in the row, if packed
        self._num_cut = 0  # tokens of the document that did not fit into the row
        # Not 0 for what is learnt of the row.
        self._mask = np.empty(0, completions.MASK_DTYPE)
        self._label_numbers: dict[str, int] = {}

    def add_part(self, tokens: np.ndarray, label: str | None) -> None:
        """Adds a part of a document, and writes the rows that are full.

        Args:
          tokens: that follow those of the last call.
          label: of the document, if it ends with this part; None: it goes on.
        """
        length = self._config.sequence_length
        if self._config.mode == "packed":
            self._pack(tokens, is_last=label is not None)
            return
        room = length - len(self._row)
        self._row = np.concatenate([self._row, tokens[:room]])
        self._num_cut += len(tokens[room:])
        if label is not None:
            self._write(label)

    def _pack(self, tokens: np.ndarray, *, is_last: bool) -> None:
        """Adds a part of a document to the rows, without cutting the document.

        A document that does not fit into the rest of the row begins the next one. If it
        is longer than a row, it goes on in the next, where others may follow it.
        """
        length = self._config.sequence_length
        row = np.concatenate([self._row, tokens])
        while len(row) > length:
            end = self._num_whole or length
            self._row, row = row[:end], row[end:]
            self._write("")
            self._num_whole = 0
        self._row = row
        if is_last:
            self._num_whole = len(row)

    def add_example(self, tokens: np.ndarray, mask: np.ndarray) -> None:
        """Puts an example into the row, or into a new one where it does not fit."""
        length, counts = self._config.sequence_length, self._counts
        num_cut = max(len(tokens) - length, 0)
        tokens, mask = completions.fit(tokens, mask, length)
        counts.truncated_tokens += num_cut
        counts.truncated_documents += num_cut > 0
        is_full = len(self._row) + len(tokens) > length
        if is_full or self._config.completions_per_record == "one":
            self.close()
        self._row = np.concatenate([self._row, tokens])
        self._mask = np.concatenate([self._mask, mask])

    def close(self) -> None:
        """Writes the row, where something is in it."""
        if len(self._row):
            self._write("")

    def _write(self, label: str) -> None:
        """Writes the row, and begins the next one."""
        length, counts = len(self._row), self._counts
        missing = self._config.sequence_length - length
        left = self._config.padding_side == "left"
        sides = (missing, 0) if left else (0, missing)
        row = np.pad(self._row, sides, constant_values=self._pad_id)
        token_file, length_file, label_file, *mask_files = self._streams
        for mask_file in mask_files:
            mask_file.write(np.pad(self._mask, sides).tobytes())
            self._mask = self._mask[:0]
        token_file.write(row.tobytes())
        length_file.write(np.array(length, LENGTH_DTYPE).tobytes())
        number = self._label_numbers.setdefault(label, len(self._label_numbers))
        label_file.write(np.array(number, LABEL_DTYPE).tobytes())
        counts.tokens += length
        counts.truncated_tokens += self._num_cut
        counts.truncated_documents += self._num_cut > 0
        if self._config.mode in ("packed", "completion"):
            counts.rows += 1
        if self._config.mode == "labelled":
            counts.labels[label] = counts.labels.get(label, 0) + 1
        self._row, self._num_cut = self._row[:0], 0
