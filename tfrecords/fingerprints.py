"""Identifies tokenizers by a fingerprint of their vocabulary and merges."""

import hashlib
import json

from tfrecords.storage import files


def of_tokenizer(folder: str) -> str | None:
    """Returns the SHA-256 of a BPE tokenizer's vocabulary and merges.

    Reads `tokenizer.json`, or `vocab.json` and `merges.txt`. Both forms of the same
    tokenizer have the same fingerprint. Added tokens are part of the vocabulary.

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
    added = {token["content"]: token["id"] for token in values.get("added_tokens", [])}
    vocabulary = {**values["model"]["vocab"], **added}
    return _fingerprint(vocabulary, values["model"].get("merges", []))


def _fingerprint(vocabulary: dict[str, int], merges: list) -> str:
    # Newer tokenizers store a merge as a pair, older ones as "first second".
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    canonical = json.dumps([vocabulary, pairs], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
