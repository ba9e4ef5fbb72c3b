"""Tests of the fingerprints of tokenizers."""

import json

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from tests.conftest import shared, write_dataset
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


def of_changed(values: dict, **changes) -> str:
    """The fingerprint of a tokenizer.json with other parts."""
    return fingerprints.of_tokenizer_json(json.dumps({**values, **changes}))


def word_piece(**normalizer) -> dict:
    tokens = {"[UNK]": 0, "[SEP]": 1, "a": 2}
    piece = tokenizers.Tokenizer(models.WordPiece(tokens, unk_token="[UNK]"))
    piece.normalizer = normalizers.BertNormalizer(**normalizer)
    piece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    piece.decoder = decoders.WordPiece()
    piece.add_special_tokens(["[SEP]"])
    return json.loads(piece.to_str())


def unigram(score: float) -> dict:
    pieces = [("<unk>", 0.0), ("a", score), ("b", -1.0)]
    return json.loads(tokenizers.Tokenizer(models.Unigram(pieces, 0)).to_str())


def test_every_part_that_changes_tokens_or_text_changes_the_fingerprint():
    piece = word_piece()
    (token,) = piece["added_tokens"]
    metaspace = {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"}
    different = [
        of_changed(piece),
        of_changed(word_piece(lowercase=False)),
        of_changed(word_piece(strip_accents=False)),
        of_changed(piece, normalizer=None),
        of_changed(piece, pre_tokenizer=metaspace),
        of_changed(piece, decoder=None),
        of_changed(piece, model={**piece["model"], "unk_token": "a"}),
        of_changed(piece, model={**piece["model"], "max_input_chars_per_word": 9}),
        of_changed(piece, added_tokens=[{**token, "lstrip": True}]),
        of_changed(piece, added_tokens=[{**token, "special": False}]),
        of_changed(piece, added_tokens=[{**token, "normalized": True}]),
        of_changed(unigram(-2.0)),
        of_changed(unigram(-2.5)),
    ]
    assert len(set(different)) == len(different)
    # A post-processor's tokens are never added; nor is anything cut or padded.
    processor = {"type": "TemplateProcessing", "single": [], "pair": []}
    padding = {"strategy": {"Fixed": 8}, "pad_id": 0}
    assert different[0] == of_changed(piece, post_processor=processor, padding=padding)


def test_a_dataset_of_an_earlier_version_keeps_its_fingerprint(tmp_path):
    """Those of vocabulary and merges, as fbd044a computed them."""
    (tmp_path / "data").mkdir()
    written = write_dataset(
        tmp_path / "data",
        train_tokens=np.arange(64),
        validation_tokens=np.arange(64),
        sequence_length=8,
        vocabulary_size=300,
    )
    folder = str(tmp_path / "data" / "tokenizer")
    assert written.tokenizer_fingerprint.startswith("17390b7d83a42d48d34bca65f2919d94")
    path = tmp_path / "data" / "tokenizer" / "tokenizer.json"
    values = json.loads(path.read_text())
    values["normalizer"] = {"type": "NFC"}
    path.write_text(json.dumps(values))
    # The earlier version did not see this, and its datasets are recognized still.
    assert fingerprints.of_tokenizer(folder) != written.tokenizer_fingerprint
    assert fingerprints.is_same(written.tokenizer_fingerprint, folder)
    values["model"]["vocab"]["new"] = 300
    path.write_text(json.dumps(values))
    assert not fingerprints.is_same(written.tokenizer_fingerprint, folder)
