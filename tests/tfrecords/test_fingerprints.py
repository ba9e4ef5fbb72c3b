"""Tests of the fingerprints of tokenizers."""

import json

from tests.conftest import shared
from tfrecords import fingerprints


def test_a_tokenizer_has_the_same_fingerprint_in_both_file_formats(tmp_path):
    from transformers import GPT2TokenizerFast

    shared("gpt2-vocabulary/vocab.json")
    pair = shared("gpt2-vocabulary/merges.txt").removesuffix("merges.txt")
    GPT2TokenizerFast.from_pretrained(pair).save_pretrained(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink(missing_ok=True)
    fingerprint = fingerprints.of_tokenizer(pair)
    assert fingerprints.of_tokenizer(str(tmp_path)) == fingerprint
    assert fingerprints.of_tokenizer(str(tmp_path.parent)) is None

    changed = json.loads((tmp_path / "tokenizer.json").read_text())
    changed["model"]["merges"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed))
    assert fingerprints.of_tokenizer(str(tmp_path)) != fingerprint
