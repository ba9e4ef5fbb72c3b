"""Text -> token ids, by the fastest library that gives what `tokenizers` gives.

gigatoken is several times faster, and is used where a check at the start of the job
shows the same ids on the job's own text. Otherwise `tokenizers` does the work.
"""

import dataclasses
import functools
import importlib.metadata
import itertools
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers
from absl import logging

from tfrecords.storage import files

FAST, REFERENCE = "gigatoken", "tokenizers"

# Text given to a library at once; a longer one is cut where tokens cannot cross.
BLOCK_BYTES = 1 << 20
# Before white space that follows something else, GPT-2's pattern always ends a match.
_CUT = re.compile(rb"(?<=\S)(?=\s)")
_MAYBE_NEW = re.compile(rb"\xf0...|\xe0..|\xea\x9f.", re.DOTALL)
# How far back from the end of a block a place to cut is looked for.
_CUT_BYTES = 256
# The fast library's cache of words may grow by so much before it is emptied.
_CACHE_BYTES = 128 << 20
_SLOWER = "tokenizing with tokenizers, which is slower"
# What a sample of the input may lack.
_HARD_TEXTS = (
    "",
    "  \n\n\t x  y \r\n z\u00a0\u3000 end   ",
    "don't I'LL we've 'S 1234567 3.14 x_y --- ?!",
    "Grüße Ελληνικά Привет שלום مرحبا हिन्दी 語言模型 日本語の 한국어 ไทย",
    "🙂👩‍👩‍👧‍👦🇨🇭 e\u0301 \ufeff \u200b \ufffd \x00\x01 \U0010ffff",
    "a" * 999 + " " * 999 + "語" * 999,
)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What preprocessing needs to know of a tokenizer, beside its file.

    `start_id` and `end_id` go before and after each document; None: nothing does.
    `added_tokens` are those that the job added.
    """

    size: int
    end_of_text_id: int
    pad_id: int
    start_id: int | None
    end_id: int | None
    added_tokens: tuple[str, ...]


class Encoder:
    """Encodes with one library.

    Args:
      tokenizer_json: content of `tokenizer.json`.
      engine: FAST or REFERENCE.
      allow_special_tokens: whether special tokens inside the text are special. If
        not, they are text: no document can end another.

    Raises:
      ImportError, ValueError: the fast library is absent, or refuses the tokenizer.
    """

    def __init__(self, tokenizer_json: str, engine: str, *, allow_special_tokens: bool):
        values = json.loads(tokenizer_json)
        self.special_tokens = [token["content"] for token in values["added_tokens"]]
        pattern = values["pre_tokenizer"] or {}
        spaced = any(
            token["lstrip"] or token["rstrip"] or re.search(r"\s", token["content"])
            for token in values["added_tokens"]
        )
        self._can_cut = (
            not (spaced and allow_special_tokens)
            and values["normalizer"] is None
            and pattern.get("type") == "ByteLevel"
            and pattern.get("use_regex", True)
            and not pattern.get("add_prefix_space")
        )
        if engine == FAST:
            from gigatoken.gigatoken_rs import load_hf_json

            if not allow_special_tokens:
                values["added_tokens"] = []
            values |= {"truncation": None, "padding": None, "post_processor": None}
            self._load_fast, self._fast_json = load_hf_json, json.dumps(values)
            self._fast: Any = None
            self._allowed_bytes = 0
            self._bound_memory()
            self._encode = self._encode_fast
        else:
            self._encode = self._encode_reference
        self._reference_json = tokenizer_json
        self._allow_special_tokens = allow_special_tokens

    def blocks(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        """Cuts a text that comes in parts into blocks that are encoded by themselves.

        The tokens of the blocks, one after the other, are those of the whole text. A
        text without any place to cut stays whole.
        """
        if not self._can_cut:
            yield b"".join(parts)
            return
        rest = b""
        for part in parts:
            rest = rest + part if rest else part
            while len(rest) > BLOCK_BYTES:
                place = _last_cut(rest, BLOCK_BYTES)
                if not place:
                    break
                yield rest[:place]
                rest = rest[place:]
        yield rest

    def encode(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Encodes texts, UTF-8, each by itself.

        Returns:
          uint32 [tokens] of all texts, and int64 [len(texts) + 1]: text i has the
          tokens from offsets[i] to offsets[i + 1].
        """
        return self._encode(texts)

    def _encode_fast(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        self._bound_memory()
        layout = self._fast.encode_batch(list(texts), parallel=False).layout
        offsets = np.asarray(layout.offsets.data, np.int64)
        tokens = np.asarray(layout.content.data)[: offsets[-1]]
        new = [i for i, text in enumerate(texts) if _has_new_characters(text)]
        if new:
            parts = np.split(tokens, offsets[1:-1])
            for index in new:
                parts[index] = self._encode_reference([texts[index]])[0]
            tokens = np.concatenate(parts)
            offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        return tokens, offsets

    def _bound_memory(self) -> None:
        """Begins anew with an empty cache when that of the fast library has grown."""
        if self._fast is None or _resident_bytes() > self._allowed_bytes:
            self._fast = self._load_fast(self._fast_json)
            self._allowed_bytes = _resident_bytes() + _CACHE_BYTES

    def _encode_reference(
        self, texts: Sequence[bytes]
    ) -> tuple[np.ndarray, np.ndarray]:
        encodings = self._reference.encode_batch_fast(
            [text.decode() for text in texts], add_special_tokens=False
        )
        ids = [np.array(encoding.ids, np.uint32) for encoding in encodings]
        offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
        return np.concatenate([np.empty(0, np.uint32), *ids]), offsets

    @functools.cached_property
    def _reference(self) -> tokenizers.Tokenizer:
        reference = tokenizers.Tokenizer.from_str(self._reference_json)
        reference.encode_special_tokens = not self._allow_special_tokens
        reference.no_truncation()
        reference.no_padding()
        return reference


def choose(
    tokenizer_json: str, sample: Sequence[bytes], *, allow_special_tokens: bool
) -> str:
    """Returns the engine to use: the fast one, if it gives the reference's tokens.

    Args:
      tokenizer_json: content of `tokenizer.json`.
      sample: texts of the job's own input.
      allow_special_tokens: as for `Encoder`.
    """
    reference = Encoder(
        tokenizer_json, REFERENCE, allow_special_tokens=allow_special_tokens
    )
    hard = [*_HARD_TEXTS, *(f"x{token} y" for token in reference.special_tokens)]
    texts = [*(text.encode() for text in hard), *sample]
    num_tokens = 0
    try:
        fast = Encoder(tokenizer_json, FAST, allow_special_tokens=allow_special_tokens)
    except Exception as error:  # of whatever class: it comes from Rust
        logging.warning("%s; gigatoken does not do this one: %s", _SLOWER, error)
        return REFERENCE
    for text in texts:
        found, expected = fast.encode([text])[0], reference.encode([text])[0]
        num_tokens += len(expected)
        if not np.array_equal(found, expected):
            start = text[:80].decode(errors="replace")
            logging.warning("%s; gigatoken differs for %r", _SLOWER, start)
            return REFERENCE
    logging.info(
        "tokenizing with gigatoken: the same tokens as tokenizers on %d texts with "
        "%d tokens",
        len(texts),
        num_tokens,
    )
    return FAST


def version(engine: str) -> str:
    """Returns "NAME VERSION" of an engine, for the manifest."""
    return f"{engine} {importlib.metadata.version(engine)}"


@functools.lru_cache(maxsize=1)
def load(
    path: str, fingerprint: str, engine: str, *, allow_special_tokens: bool
) -> Encoder:
    """Makes the encoder of a `tokenizer.json` once in a process: it caches words.

    The fingerprint is that of the tokenizer: a path may hold another one later.
    """
    del fingerprint
    return Encoder(
        files.read(path).decode(), engine, allow_special_tokens=allow_special_tokens
    )


def _last_cut(text: bytes, end: int) -> int:
    """Returns the last place to cut before `end`, or the first one after it, or 0."""
    places = [match.start() for match in _CUT.finditer(text, end - _CUT_BYTES, end)]
    after = (match.start() for match in _CUT.finditer(text, end))
    for place in itertools.chain(reversed(places), after):
        # What stands before may be white space outside ASCII, in up to 3 bytes.
        if not text[place - 3 : place].decode(errors="ignore")[-1:].isspace():
            return place
    return 0


def _has_new_characters(text: bytes) -> bool:
    """Whether a text has characters that are newer than Python's Unicode tables.

    The libraries have tables of different age, so they may take such a character for
    a letter or not. test_encoder.py compares them on all others; those that are looked
    for here begin as all do on which they differ.
    """
    if text.isascii() or not any(b in text for b in (b"\xf0", b"\xe0", b"\xea\x9f")):
        return False
    found = set(_MAYBE_NEW.findall(text))
    return any(unicodedata.category(c.decode()) == "Cn" for c in found)


def _resident_bytes() -> int:
    """The memory of this process, or 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
