"""Tokenizers of all families load from the files that people publish."""

import json

import pytest
import tokenizers
from transformers import BertTokenizerFast

from tests import families
from tfrecords import encoding

TEXT = "The tree, the house and the tree. 樹和房子，樹。 Größe 12  x\n"
TEXTS = [TEXT] * 20


@pytest.fixture(params=families.FAMILIES)
def folder(request, tmp_path):
    families.FAMILIES[request.param](tmp_path, TEXTS, 300)
    return tmp_path


def test_a_saved_tokenizer_loads_as_it_was_and_adds_nothing(folder, tmp_path):
    """transformers' own class for it gives the ids, without special tokens or types."""
    from transformers import AutoTokenizer

    loaded = encoding.load_tokenizer(str(folder))
    encode = encoding.encoder(
        loaded.backend_tokenizer.to_str(), allow_special_tokens=False
    )
    saved = str(tmp_path / "saved")
    loaded.save_pretrained(saved)
    for again in (encoding.load_tokenizer(saved), AutoTokenizer.from_pretrained(saved)):
        result = again(TEXT)
        assert [result["input_ids"]] == encode([TEXT])
        assert set(result) == {"input_ids", "attention_mask"}
        assert again.decode(result["input_ids"]) == loaded.decode(*encode([TEXT]))
        assert again.special_tokens_map == loaded.special_tokens_map


def test_a_vocab_txt_is_that_of_bert(tmp_path):
    families.word_piece(tmp_path, TEXTS, 300)
    text = TEXT + "ÉTÉ [SEP] 🙂"
    for settings in ({}, {"do_lower_case": False}, {"tokenize_chinese_chars": False}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        judge = BertTokenizerFast.from_pretrained(tmp_path)
        loaded = encoding.load_tokenizer(str(tmp_path))
        assert loaded(text)["input_ids"] == judge(text)["input_ids"][1:-1]
        assert loaded.special_tokens_map == judge.special_tokens_map


def test_chinese_comes_back_from_word_piece_without_spaces(tmp_path):
    families.word_piece(tmp_path, TEXTS, 300)
    loaded = encoding.load_tokenizer(str(tmp_path))
    for text in ("樹和房子，樹。", "the tree", "the 樹 and"):
        decoded = loaded.decode(loaded(text)["input_ids"])
        assert decoded == text.replace(" 樹", "樹")


def test_a_spiece_model_has_the_ids_of_its_unigram(tmp_path):
    families.sentence_piece(tmp_path, TEXTS, 300)
    loaded = encoding.load_tokenizer(str(tmp_path))
    pieces = json.loads(loaded.backend_tokenizer.to_str())["model"]["vocab"]
    pairs = list(map(tuple, pieces))
    judge = tokenizers.Tokenizer(tokenizers.models.Unigram(pairs, 0))
    judge.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    text = "the tree 樹和房子 🙂"
    assert loaded(text)["input_ids"] == judge.encode(text).ids
    assert (loaded.eos_token, loaded.eos_token_id) == ("</s>", 2)
    # XLNet's own form, by its configuration; rinna's is in lower case.
    (tmp_path / "config.json").write_text('{"model_type": "xlnet"}')
    xlnet = encoding.load_tokenizer(str(tmp_path))
    assert xlnet.decode(xlnet("Größe")["input_ids"]) == xlnet.decode(
        xlnet("Große")["input_ids"]
    )
    (tmp_path / "config.json").unlink()
    settings = {"do_lower_case": True, "extra_ids": 0, "tokenizer_class": "T5Tokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    rinna = encoding.load_tokenizer(str(tmp_path))
    assert rinna("THE TREE")["input_ids"] == judge.encode("the tree").ids
    assert len(rinna) == len(pieces)
