"""Documents -> token ids, by `tokenizers`, or by gigatoken, which is faster.

Both give the same ids where `engine_choice` allows gigatoken.
"""

import dataclasses
import functools
import itertools
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tfrecords import encoding
from tfrecords.storage import files

FAST, REFERENCE = "gigatoken", "tokenizers"

# The libraries get about this much text at once. A longer document is cut into blocks.
BLOCK_BYTES = 1 << 20
# GPT-2's pattern always ends a token before white space that follows something else.
_CUT = re.compile(rb"(?<=\S)(?=\s)")
# The last place to cut is searched in so many bytes before the end of a block.
_SEARCHED_BYTES = 256
# gigatoken caches words; the cache is emptied when it has grown by this much.
_CACHE_BYTES = 128 << 20


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Size and special ids of a tokenizer."""

    size: int  # one more than the largest id
    end_of_text_id: int
    pad_id: int
    start_id: int | None  # goes before each document
    end_id: int | None  # goes after each document
    added_tokens: tuple[str, ...]  # special tokens that the job added


@dataclasses.dataclass(frozen=True)
class StoredTokenizer:
    """The tokenizer of a job, as worker processes load it."""

    path: str  # of its `tokenizer.json`
    sha256: str  # of that file and of a chat template: files can be replaced later
    engine: str  # of `encoder.ENGINES`; does not change the tokens
    vocabulary: Vocabulary


class ReferenceEncoder:
    """Encodes with `tokenizers`.

    Args:
      tokenizer_json: content of `tokenizer.json`.
      allow_special_tokens: whether "<|endoftext|>" and the like inside a text are the
        special tokens. If not, they are text, and no document can end another.
    """

    def __init__(self, tokenizer_json: str, *, allow_special_tokens: bool):
        """Reads the tokenizer's settings; the library loads it when it is used."""
        settings = json.loads(tokenizer_json)
        added = settings["added_tokens"]
        # Tokens that are found in a text: others than special ones always are.
        active = [t for t in added if allow_special_tokens or not t["special"]]
        # Special tokens that are left to be text, and how they begin.
        special = [] if allow_special_tokens else [t for t in added if t["special"]]
        self._as_text = [token["content"].encode() for token in special]
        self._as_text_starts = {token[:2] for token in self._as_text}
        self._tokenizer_json = tokenizer_json
        self._allow_special_tokens = allow_special_tokens
        self._unknown_id = encoding.unknown_id(settings["model"])
        pattern, decoder = settings["pre_tokenizer"] or {}, settings["decoder"] or {}
        self._is_lossless = (
            encoding.has_all_bytes(settings)
            and settings["normalizer"] is None
            and pattern["type"] == decoder.get("type") == "ByteLevel"
        )
        crosses_spaces = any(
            token["lstrip"] or token["rstrip"] or re.search(r"\s", token["content"])
            for token in active
        )
        # Others are encoded whole: what stands before a space may change its token.
        self._can_cut = (
            not crosses_spaces
            and self._is_lossless
            and pattern.get("use_regex", True)
            and not pattern.get("add_prefix_space")
        )

    def blocks(
        self, parts: Iterable[bytes], block_bytes: int = BLOCK_BYTES
    ) -> Iterator[bytes]:
        """Cuts a text that comes in parts into blocks.

        The tokens of all blocks, encoded one by one, are those of the whole text. A
        text without any place to cut stays whole.

        Args:
          parts: of the text, UTF-8.
          block_bytes: size that blocks do not exceed, if there is a place to cut.
        """
        if not self._can_cut:
            yield b"".join(parts)
            return
        rest, start, searched = b"", 0, 0
        for part in parts:
            rest, start, searched = rest[start:] + part, 0, max(searched - start, 0)
            while len(rest) - start > block_bytes:
                end = max(start + block_bytes, searched)
                place = _last_cut(rest, start, end)
                if not place:
                    searched = len(rest)  # not again when the text is longer
                    break
                yield rest[start:place]
                start = place
        yield rest[start:]

    def encode(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Encodes texts, UTF-8, each by itself.

        Returns:
          uint32 [num_tokens] of all texts, and int64 [len(texts) + 1]: text i has the
          tokens from offsets[i] to offsets[i + 1].
        """
        encoded = self._encode_texts([text.decode() for text in texts])
        ids = [np.array(of_text, np.uint32) for of_text in encoded]
        offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
        return np.concatenate([np.empty(0, np.uint32), *ids]), offsets

    def count_losses(
        self, texts: Sequence[bytes], tokens: np.ndarray, offsets: np.ndarray
    ) -> tuple[int, int]:
        """Counts what the tokens do not tell of their texts.

        Args:
          texts: whole documents, unless the tokenizer cannot lose anything.
          tokens: as `encode` returns them.
          offsets: as `encode` returns them.

        Returns:
          The number of unknown tokens, and of texts that do not decode to themselves.
        """
        if self._is_lossless:
            return 0, 0
        ids = [part.tolist() for part in np.split(tokens, offsets[1:-1])]
        pairs = zip(texts, self._decode(ids), strict=True)
        num_changed = sum(text != decoded.encode() for text, decoded in pairs)
        return int(np.count_nonzero(tokens == self._unknown_id)), num_changed

    def count_special_tokens_as_text(self, text: bytes) -> int:
        """Counts the special tokens in a text whose ids are those of plain text."""
        if any(start in text for start in self._as_text_starts):  # else much faster
            return sum(map(text.count, self._as_text))
        return 0

    @functools.cached_property
    def _decode(self) -> Callable[[Sequence[Sequence[int]]], list[str]]:
        return encoding.decoder(self._tokenizer_json)

    @functools.cached_property
    def _encode_texts(self) -> Callable[[Sequence[str]], list[list[int]]]:
        return encoding.encoder(
            self._tokenizer_json, allow_special_tokens=self._allow_special_tokens
        )


class FastEncoder(ReferenceEncoder):
    """Encodes with gigatoken.

    Args:
      tokenizer_json: as for `ReferenceEncoder`.
      allow_special_tokens: as for `ReferenceEncoder`.
      cache_bytes: by which the process may grow before the cache of words is emptied.

    Raises:
      Exception: of whatever class: gigatoken is missing, or refuses the tokenizer.
    """

    def __init__(
        self,
        tokenizer_json: str,
        *,
        allow_special_tokens: bool,
        cache_bytes: int = _CACHE_BYTES,
    ):
        """Loads the tokenizer into the library."""
        super().__init__(tokenizer_json, allow_special_tokens=allow_special_tokens)
        settings = json.loads(tokenizer_json)
        if not allow_special_tokens:
            settings["added_tokens"] = []
        settings |= {"truncation": None, "padding": None, "post_processor": None}
        self._settings_json = json.dumps(settings)
        self._cache_bytes = cache_bytes
        self._load()

    def encode(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Encodes texts; see `ReferenceEncoder.encode`."""
        if _resident_bytes() > self._allowed_bytes:
            self._load()
        layout = self._fast.encode_batch(list(texts), parallel=False).layout
        offsets = np.asarray(layout.offsets.data, np.int64)
        tokens = np.asarray(layout.content.data)[: offsets[-1]]
        new = [i for i, text in enumerate(texts) if _has_new_characters(text)]
        if new:
            parts = np.split(tokens, offsets[1:-1])
            for index in new:
                parts[index] = super().encode([texts[index]])[0]
            tokens = np.concatenate(parts)
            offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        return tokens, offsets

    def _load(self) -> None:
        """Loads the tokenizer anew, with an empty cache."""
        from gigatoken import gigatoken_rs

        self._fast: Any = gigatoken_rs.load_hf_json(self._settings_json)
        self._allowed_bytes = _resident_bytes() + self._cache_bytes


ENGINES: dict[str, type[ReferenceEncoder]] = {
    FAST: FastEncoder,
    REFERENCE: ReferenceEncoder,
}


@functools.lru_cache(maxsize=1)
def load(tokenizer: StoredTokenizer, *, allow_special_tokens: bool) -> ReferenceEncoder:
    """Loads a job's tokenizer once in each process, because an encoder caches words."""
    content = files.read(tokenizer.path).decode()
    return ENGINES[tokenizer.engine](content, allow_special_tokens=allow_special_tokens)


def _last_cut(text: bytes, start: int, end: int) -> int:
    """Returns the last place to cut between `start` and `end`, or one later, or 0."""
    start = max(start + 1, end - _SEARCHED_BYTES)
    before = [match.start() for match in _CUT.finditer(text, start, end)]
    after = (match.start() for match in _CUT.finditer(text, end))
    for place in itertools.chain(reversed(before), after):
        # The character before may be white space outside ASCII, of up to 3 bytes.
        character = text[max(place - 3, 0) : place].decode(errors="ignore")[-1:]
        if not character.isspace():
            return place
    return 0


_MAYBE_NEW = re.compile(rb"\xf0...|\xe0..|\xea\x9f.", re.DOTALL)


def _has_new_characters(text: bytes) -> bool:
    """Returns whether a text has characters newer than Python's Unicode tables.

    The libraries' tables are of different age, so one may take such a character for a
    letter and another may not. test_encoder.py compares them on all characters: those
    on which they differ begin with the bytes that are searched here.
    """
    if text.isascii() or not any(b in text for b in (b"\xf0", b"\xe0", b"\xea\x9f")):
        return False
    candidates = set(_MAYBE_NEW.findall(text))
    return any(unicodedata.category(c.decode()) == "Cn" for c in candidates)


def _resident_bytes() -> int:
    """Returns the memory of this process, or 0 where there is no /proc."""
    try:
        with open("/proc/self/statm") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
