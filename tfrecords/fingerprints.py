"""Identifies tokenizers by a fingerprint of all that makes their tokens and text."""

import hashlib
import json
from typing import Any

from tfrecords import encoding
from tfrecords.storage import files


def of_tokenizer(folder: str) -> str | None:
    """Returns the SHA-256 of a tokenizer.

    It covers normalizer, pre-tokenizer, model, decoder and added tokens. Reads
    `tokenizer.json`, or `vocab.json` and `merges.txt`. Both forms of the same tokenizer
    have the same fingerprint.

    Args:
      folder: folder of the tokenizer, on a disk or in a bucket.

    Returns:
      64 hexadecimal digits; None if the folder holds neither form.
    """
    tokenizer_path, vocabulary_path, merges_path = (
        files.join(folder, name)
        for name in ("tokenizer.json", "vocab.json", "merges.txt")
    )
    if files.exists(tokenizer_path):
        return of_tokenizer_json(files.read(tokenizer_path).decode())
    if files.exists(vocabulary_path) and files.exists(merges_path):
        vocabulary = json.loads(files.read(vocabulary_path))
        lines = files.read(merges_path).decode().split("\n")
        merges = [line for line in lines if line and not line.startswith("#version")]
        return _fingerprint(vocabulary, merges)
    return None


def of_tokenizer_json(tokenizer_json: str) -> str:
    """Returns the fingerprint of a tokenizer with this `tokenizer.json`."""
    values = json.loads(tokenizer_json)
    settings = _settings(values)
    return _fingerprint(*_contents(values), *([] if settings == _GPT2 else [settings]))


def is_same(fingerprint: str, folder: str) -> bool:
    """Returns whether a stored fingerprint is that of a folder's tokenizer.

    Earlier versions knew byte-level BPE alone, and stored a fingerprint of vocabulary
    and merges: it is recognized.

    Args:
      fingerprint: of a manifest of any version.
      folder: folder of the tokenizer, on a disk or in a bucket.
    """
    if of_tokenizer(folder) == fingerprint:
        return True
    path = files.join(folder, "tokenizer.json")
    if not files.exists(path):
        return False
    values = json.loads(files.read(path))
    old = encoding.is_byte_level(values) and _fingerprint(*_contents(values))
    return old == fingerprint


# The settings of GPT-2's own tokenizer, which its fingerprint leaves out: it is that of
# earlier versions, and of `vocab.json` and `merges.txt`.
_GPT2 = {
    "normalizer": None,
    "pre_tokenizer": {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "use_regex": True,
    },
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE"},
    "added_tokens": {},
}
# What has no influence on token ids or text: parts of offsets; ByteLevel's decoder has
# all settings of its pre-tokenizer, and uses none.
_WITHOUT_INFLUENCE = {
    "pre_tokenizer": {"trim_offsets"},
    "decoder": {"trim_offsets", "add_prefix_space", "use_regex"},
}


def _contents(values: dict[str, Any]) -> tuple[dict[str, int], list]:
    """Returns all tokens with their ids, and the merges."""
    vocabulary = values["model"]["vocab"]
    if isinstance(vocabulary, list):  # a Unigram's pairs of token and score
        vocabulary = {token: index for index, (token, _) in enumerate(vocabulary)}
    added = {token["content"]: token["id"] for token in values.get("added_tokens", [])}
    return {**vocabulary, **added}, values["model"].get("merges", [])


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    """Returns all that token ids and decoded text depend on, but tokens and merges.

    A post-processor is not part of it: its tokens are never added.
    """
    model = values["model"]
    settings: dict[str, Any] = {"normalizer": values.get("normalizer")}
    for name in ("pre_tokenizer", "decoder"):
        part = values.get(name)
        if part and part["type"] == "ByteLevel":
            part = {"use_regex": True, **part}  # older files lack it
            part = {k: v for k, v in part.items() if k not in _WITHOUT_INFLUENCE[name]}
        settings[name] = part
    # Fields that are off are missing in older files.
    settings["model"] = {"type": "BPE"} | {
        name: value
        for name, value in model.items()
        if name != "merges"
        and value not in (None, "")
        and value is not False
        and (name != "vocab" or isinstance(value, list))
    }
    if encoding.has_all_bytes(values):  # no text is unknown
        settings["model"].pop("unk_token", None)
    flags = ["single_word", "lstrip", "rstrip"]
    flags += ["normalized"] if settings["normalizer"] else []
    added = {
        token["content"]: [name for name in flags if token[name]]
        + ([] if token["special"] else ["found in text"])
        for token in values.get("added_tokens", [])
    }
    settings["added_tokens"] = {token: names for token, names in added.items() if names}
    return settings


def _fingerprint(vocabulary: dict[str, int], merges: list, *settings: Any) -> str:
    # Newer tokenizers store a merge as a pair, older ones as "first second".
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    canonical = json.dumps([vocabulary, pairs, *settings], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
