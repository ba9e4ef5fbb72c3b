"""Datasets of all families of tokenizers: blocks, losses, end tokens, training."""

import json
import pathlib

import numpy as np
import pytest
import tokenizers

from configs.errors import DataError
from data_pipeline.tokens import encoder, engine_choice
from tests import families
from tests.conftest import shared
from tests.data_pipeline.runs import run
from tests.data_pipeline.test_modes import rows
from tfrecords import encoding, manifest


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """Of two languages, with blank lines, tabs, and spaces at the ends."""
    english = pathlib.Path(shared("wikitext-2/wiki.valid.raw")).read_text()[:40_000]
    chinese = pathlib.Path(shared("recipes/howtocook_zh.jsonl")).read_text()
    recipes = [json.loads(line)["text"] for line in chinese.splitlines()[:25]]
    return [english, *recipes, "\tone  two \r\n\n three\u3000four\u00a0 ", " one "]


@pytest.fixture(scope="module", params=families.FAMILIES)
def family(request, tmp_path_factory, documents) -> str:
    """A folder with a tokenizer of each family."""
    folder = tmp_path_factory.mktemp("tokenizer")
    families.FAMILIES[request.param](folder, documents, 2500)
    return str(folder)


@pytest.mark.parametrize("part_bytes", [50, 700])
def test_blocks_have_the_tokens_of_the_whole(family, documents, part_bytes):
    tokenizer_json = encoding.load_tokenizer(family).backend_tokenizer.to_str()
    chosen = engine_choice.choose(tokenizer_json, [], allow_special_tokens=False)
    judge = tokenizers.Tokenizer.from_str(tokenizer_json)
    for name in {chosen, encoder.REFERENCE}:
        engine = encoder.ENGINES[name](tokenizer_json, allow_special_tokens=False)
        for document in (documents[0], "".join(documents[1:])):
            text = document.encode()
            parts = [text[i : i + part_bytes] for i in range(0, len(text), part_bytes)]
            blocks = list(engine.blocks(parts, block_bytes=300))
            assert b"".join(blocks) == text
            tokens, _ = engine.encode(blocks)
            expected = judge.encode(document, add_special_tokens=False).ids
            assert tokens.tolist() == expected


def preprocess(tokenizer, folder, documents, **fields) -> manifest.Manifest:
    path = folder / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in documents))
    settings = {"validation_fraction": 0.0, "sequence_length": 16, **fields}
    return run(path, folder / "data", tokenizer=tokenizer, **settings)


def test_what_a_tokenizer_loses_is_counted_and_allowed_by_name(
    tmp_path, caplog, monkeypatch
):
    learnt, lost = ["one two three four"] * 30, ["one 🙂 two 🙂", "One", "one\ntwo"]
    families.word_piece(tmp_path, learnt, 100)
    shares = (
        r"2 of 1\d\d tokens \(1\.\d\d%\) are unknown, and 3 of 33 documents \(9.09%\)"
    )
    with pytest.raises(DataError, match=shares) as error:
        preprocess(str(tmp_path), tmp_path, learnt + lost)
    assert "--config.data.allow_lossy_tokenizer" in str(error.value)
    # What is finished stays: no document is encoded again.
    monkeypatch.delattr(encoder.ReferenceEncoder, "blocks")
    written = preprocess(
        str(tmp_path), tmp_path, learnt + lost, allow_lossy_tokenizer=True
    )
    counts = {"unknown_token": 2, "text_changed_by_tokenizer": 3}
    assert written.split("train").kept == counts
    assert "the tokenizer loses text: 2 of" in caplog.text
    assert "allow_lossy_tokenizer" not in written.config


def test_a_tenth_of_a_percent_is_not_told(tmp_path, caplog):
    learnt = ["one two three four"] * 1000
    families.word_piece(tmp_path, learnt, 100)
    split = preprocess(str(tmp_path), tmp_path, [*learnt, "ONE"]).split("train")
    assert split.kept == {"text_changed_by_tokenizer": 1}
    assert "loses text" not in caplog.text


def test_a_document_ends_by_rule_or_by_name(tmp_path, documents):
    """The tokenizer's own end-of-text token; else [SEP]; else a name is asked for."""
    lossy = {"allow_lossy_tokenizer": True}
    for name, family, expected in (
        ("a", families.metaspace, "</s>"),
        ("b", families.word_piece, "[SEP]"),
        ("c", families.sentence_piece, "</s>"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        family(folder, documents, 2500)
        written = preprocess(str(folder), folder, documents, **lossy)
        saved = encoding.load_tokenizer(str(folder / "data" / "tokenizer"))
        assert saved.eos_token == expected
        assert saved.eos_token_id == written.end_of_text_id
        assert written.added_tokens == ()
    bare = tmp_path / "bare"
    bare.mkdir()
    content = (tmp_path / "a" / "tokenizer.json").read_bytes()
    (bare / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match="must have an end-of-text token") as error:
        preprocess(str(bare), bare, documents, **lossy)
    assert "`--config.data.end_token`; its special tokens are: <unk>, </s>" in str(
        error.value
    )
    written = preprocess(str(bare), bare, documents, end_token="</s>", **lossy)
    assert written.end_of_text_id == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.txt", "a\nb\n", r"Missing \[UNK\] token"),
        ("vocab.txt", "", r"Missing \[UNK\] token"),
        ("tokenizer.json", "{", "Expecting property name"),
        ("spiece.model", "not a model", "Error parsing message"),
    ],
)
def test_files_that_are_not_a_tokenizer_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        preprocess(str(tmp_path), tmp_path, ["one two"])


@pytest.mark.parametrize("model", ["unigram", "wordpiece"])
def test_a_new_tokenizer_of_another_family_is_trained(tmp_path, documents, model):
    fields = {"vocab_size": 2500, "tokenizer_model": model}
    fields["allow_lossy_tokenizer"] = True
    written = preprocess("train", tmp_path, documents, **fields)
    assert 2000 < written.vocabulary_size <= 2500
    saved = encoding.load_tokenizer(str(tmp_path / "data" / "tokenizer"))
    ids = [saved(text)["input_ids"] for text in documents]
    kept = written.split("train").kept
    assert kept.get("unknown_token", 0) == 0
    assert written.split("train").tokens == sum(map(len, ids)) + len(ids)
    changed = sum(saved.decode(i) != t for i, t in zip(ids, documents, strict=True))
    assert kept.get("text_changed_by_tokenizer", 0) == changed
    assert changed == (2 if model == "unigram" else len(documents))


def test_a_vocabulary_below_the_number_of_characters_is_refused(tmp_path, documents):
    fields = {"vocab_size": 500, "tokenizer_model": "unigram"}
    with pytest.raises(DataError, match="number of different characters"):
        preprocess("train", tmp_path, documents, **fields)


def test_records_hold_the_ids_of_all_documents(family, tmp_path, documents):
    written = preprocess(family, tmp_path, documents, allow_lossy_tokenizer=True)
    saved = encoding.load_tokenizer(str(tmp_path / "data" / "tokenizer"))
    ids = [saved(text)["input_ids"] for text in documents]
    expected = np.concatenate([[*i, written.end_of_text_id] for i in ids])
    tokens = rows(tmp_path / "data")["tokens"]
    padding = [written.pad_id] * (tokens.size - len(expected))
    np.testing.assert_array_equal(np.sort(tokens, None), np.sort([*expected, *padding]))
