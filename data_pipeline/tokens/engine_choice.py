"""Chooses the fastest library that gives the token ids of `tokenizers`.

gigatoken is several times faster. It is used where it gives the same ids on samples of
the job's own text, unless the tokenizer has tokens that a sample cannot stand for.
"""

import functools
import importlib.metadata
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from data_pipeline.tokens.encoder import ENGINES, FAST, REFERENCE
from tfrecords import encoding

# Texts with properties that a sample of the input may lack.
_HARD_TEXTS = (
    "",
    "  \n\n\t x  y \r\n z\u00a0\u3000 end   ",
    "don't I'LL we've 'S 1234567 3.14 x_y --- ?!",
    "Grüße Ελληνικά Привет שלום مرحبا हिन्दी 語言模型 日本語の 한국어 ไทย",
    "🙂👩‍👩‍👧‍👦🇨🇭 e\u0301 \ufeff \u200b \ufffd \x00\x01 \U0010ffff",
    "a" * 999 + " " * 999 + "語" * 999,
)


def choose(
    tokenizer_json: str, sample: Sequence[bytes], *, allow_special_tokens: bool
) -> str:
    """Returns the engine to use: FAST if it gives the tokens of REFERENCE.

    Equal ids of samples prove little about tokens that a sample lacks: each added token
    is tried, and some kinds of them are left to REFERENCE at once.

    Args:
      tokenizer_json: content of `tokenizer.json`.
      sample: texts of the job's own input.
      allow_special_tokens: as for `ReferenceEncoder`.
    """
    if not encoding.is_byte_level(json.loads(tokenizer_json)):
        return _slower("gigatoken is for byte-level BPE")
    unsupported = _unsupported_tokens(
        tokenizer_json, allow_special_tokens=allow_special_tokens
    )
    if unsupported:
        return _slower(f"gigatoken may miss the added token {unsupported[0]!r}")
    reference, fast = (
        functools.partial(
            ENGINES[name], tokenizer_json, allow_special_tokens=allow_special_tokens
        )
        for name in (REFERENCE, FAST)
    )
    expected_encoder = reference()
    try:
        fast_encoder = fast()
    except Exception as error:  # of whatever class: it comes from Rust
        return _slower(f"gigatoken cannot load this tokenizer: {error}")
    added = [token["content"] for token in json.loads(tokenizer_json)["added_tokens"]]
    # Alone, and beside letters, spaces, line ends, punctuation and itself.
    around = [f"{t}x{t} y {t}{t}\n{t}'s\t{t} , {t}" for t in added]
    texts = [t.encode() for t in (*_HARD_TEXTS, *added, *around)]
    texts += sample
    num_tokens = 0
    for text in texts:
        expected = expected_encoder.encode([text])[0]
        num_tokens += len(expected)
        if not np.array_equal(fast_encoder.encode([text])[0], expected):
            start = text[:80].decode(errors="replace")
            return _slower(f"gigatoken differs for {start!r}")
    logging.info(
        "tokenizing with gigatoken: same tokens as tokenizers on %d texts, %d tokens",
        len(texts),
        num_tokens,
    )
    return FAST


def _slower(reason: str) -> str:
    logging.warning("tokenizing with tokenizers, which is slower; %s", reason)
    return REFERENCE


def version(engine: str) -> str:
    """Returns "NAME VERSION" of an engine, for the manifest."""
    return f"{engine} {importlib.metadata.version(engine)}"


def _unsupported_tokens(
    tokenizer_json: str, *, allow_special_tokens: bool
) -> list[str]:
    """Returns the added tokens that gigatoken may miss where no sample shows it.

    These are all that are not special, and those that are found or not by what stands
    around them, or in normalized text.
    """
    settings = json.loads(tokenizer_json)

    def depends_on_text(token: dict[str, Any]) -> bool:
        around = token["single_word"] or token["lstrip"] or token["rstrip"]
        return around or (token["normalized"] and settings["normalizer"] is not None)

    return [
        token["content"]
        for token in settings["added_tokens"]
        if not token["special"] or (allow_special_tokens and depends_on_text(token))
    ]
