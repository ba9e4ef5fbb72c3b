"""The fast engine gives the tokens of `tokenizers`, on real and on hostile text."""

import json
import pathlib

import numpy as np
import pytest
import tokenizers
from gigatoken import gigatoken_rs
from transformers import GPT2TokenizerFast

from data_pipeline.tokens import encoder, engine_choice
from tests.conftest import shared


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> str:
    """GPT-2's own tokenizer.json."""
    vocabulary = shared("gpt2-vocabulary/vocab.json").removesuffix("vocab.json")
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2TokenizerFast.from_pretrained(vocabulary).save_pretrained(folder)
    return (folder / "tokenizer.json").read_text()


def make(tokenizer_json, engine=encoder.FAST, special=False):
    return encoder.ENGINES[engine](tokenizer_json, allow_special_tokens=special)


def long_texts() -> dict[str, str]:
    return {
        "a letter": "a" * 1_000_000,
        "spaces": " " * 1_000_000,
        "lines": "\n" * 1_000_000,
        "Chinese": "".join(chr(0x4E00 + i * 7919 % 20_000) for i in range(350_000)),
        "emoji": "👩‍👩‍👧‍👦🇨🇭" * 20_000,
    }


@pytest.mark.parametrize("name", long_texts())
def test_a_megabyte_of_one_kind_of_character_comes_back(gpt2, name):
    text = long_texts()[name]
    reference = tokenizers.Tokenizer.from_str(gpt2)
    for engine in (encoder.FAST, encoder.REFERENCE):
        tokens, offsets = make(gpt2, engine).encode([text.encode(), b"end"])
        decoded = reference.decode(tokens[: offsets[1]], skip_special_tokens=False)
        assert decoded == text
        assert len(offsets) == 3


@pytest.mark.parametrize(
    "path", ["chinese/sanguo.jsonl", "wikitext-2/wiki.valid.raw", "recipes"]
)
def test_both_engines_give_the_same_tokens_of_real_text(gpt2, path):
    root = pathlib.Path(shared(path))
    files = sorted(root.iterdir()) if root.is_dir() else [root]
    texts = [line for file in files for line in file.read_bytes().splitlines(True)]
    fast, slow = (
        make(gpt2, engine).encode(texts[:2000])
        for engine in (encoder.FAST, encoder.REFERENCE)
    )
    np.testing.assert_array_equal(fast[0], slow[0])
    np.testing.assert_array_equal(fast[1], slow[1])


@pytest.mark.parametrize("path", ["chinese/sanguo.jsonl", "wikitext-2/wiki.valid.raw"])
@pytest.mark.parametrize("part_bytes", [50, 700, 10**9])
def test_blocks_have_the_tokens_of_the_whole(gpt2, path, part_bytes):
    data = pathlib.Path(shared(path)).read_bytes()[:300_000]
    data = data.decode(errors="ignore").encode()
    engine = make(gpt2)
    parts = [data[i : i + part_bytes] for i in range(0, len(data), part_bytes)]
    blocks = list(engine.blocks(parts, block_bytes=300))
    assert len(blocks) > 10
    assert b"".join(blocks) == data
    whole, _ = engine.encode([data])
    np.testing.assert_array_equal(engine.encode(blocks)[0], whole)


def test_blocks_are_not_cut_inside_white_space(gpt2):
    engine = make(gpt2)
    generator = np.random.default_rng(0)
    letters = ["a", "語", " ", "\n", "\u3000", "\u00a0", "\u2003", "\x1f", "'", "1"]
    for _ in range(500):
        text = "".join(generator.choice(letters, 60)).encode()
        blocks = list(engine.blocks([text[:70], text[70:]], block_bytes=8))
        assert b"".join(blocks) == text
        whole, _ = engine.encode([text])
        assert engine.encode(blocks)[0].tolist() == whole.tolist(), text


def test_text_for_other_patterns_is_not_cut(gpt2):
    values = json.loads(gpt2)
    values["pre_tokenizer"]["add_prefix_space"] = True
    texts = [b"one two " * 99] * 3
    blocks = list(make(json.dumps(values), encoder.REFERENCE).blocks(texts))
    assert blocks == [b"".join(texts)]


@pytest.mark.parametrize("engine", [encoder.FAST, encoder.REFERENCE])
def test_special_tokens_are_text_unless_allowed(gpt2, engine):
    text = b"one<|endoftext|>two"
    assert 50256 not in make(gpt2, engine).encode([text])[0]
    assert 50256 in make(gpt2, engine, special=True).encode([text])[0]


@pytest.mark.parametrize("special", [False, True])
def test_the_fast_engine_is_chosen_when_it_agrees(gpt2, special):
    chosen = engine_choice.choose(gpt2, [b"some text"], allow_special_tokens=special)
    assert chosen == encoder.FAST
    assert engine_choice.version(chosen).startswith("gigatoken 0.")


def test_an_engine_that_differs_in_one_token_is_not_used(gpt2, monkeypatch, caplog):
    class DifferentEncoder(encoder.FastEncoder):
        def encode(self, texts):
            tokens, offsets = super().encode(texts)
            tokens = tokens.copy()
            tokens[-1:] += 1
            return tokens, offsets

    monkeypatch.setitem(encoder.ENGINES, encoder.FAST, DifferentEncoder)
    chosen = engine_choice.choose(gpt2, [b"my own text"], allow_special_tokens=False)
    assert chosen == encoder.REFERENCE
    assert "gigatoken differs for '  " in caplog.text


def test_a_tokenizer_that_the_fast_engine_refuses_is_left_to_the_reference(caplog):
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "?": 1}, "?"))
    chosen = engine_choice.choose(plain.to_str(), [b"a b"], allow_special_tokens=False)
    assert chosen == encoder.REFERENCE
    assert "slower" in caplog.text


@pytest.mark.slow
def test_the_engines_agree_on_every_character(gpt2):
    """With a vocabulary that has every pair of bytes, so that a split shows."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    pairs = [[a, b] for a in letters for b in letters]
    values = json.loads(gpt2)
    names = [*letters, *(a + b for a, b in pairs)]
    values["model"]["vocab"] = {name: index for index, name in enumerate(names)}
    values["model"]["merges"] = pairs
    values["added_tokens"] = []
    fast, slow = (
        make(json.dumps(values), engine) for engine in (encoder.FAST, encoder.REFERENCE)
    )
    codes = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    for start in range(0, len(codes), 20_000):
        characters = map(chr, codes[start : start + 20_000])
        texts = [f"ab{c}cde {c}x{c}1{c}, {c}  '{c}s".encode() for c in characters]
        for actual, expected in zip(
            fast.encode(texts), slow.encode(texts), strict=True
        ):
            np.testing.assert_array_equal(actual, expected)


def test_new_characters_are_left_to_the_reference(gpt2):
    texts = [b"plain", "new \U00032000\ua7ce1 letters".encode(), "é".encode()]
    for engine in (encoder.FAST, encoder.REFERENCE):
        tokens, offsets = make(gpt2, engine).encode(texts)
        alone = [make(gpt2, encoder.REFERENCE).encode([text])[0] for text in texts]
        np.testing.assert_array_equal(tokens, np.concatenate(alone))
        assert offsets.tolist() == np.cumsum([0, *map(len, alone)]).tolist()


@pytest.mark.parametrize(("cache_bytes", "num_loads"), [(1 << 40, 1), (-(1 << 40), 4)])
def test_the_cache_of_words_is_emptied_when_memory_has_grown(
    gpt2, monkeypatch, cache_bytes, num_loads
):
    """gigatoken is loaded anew; a negative bound is exceeded at once."""
    loaded = []

    def counting_load(settings):
        loaded.append(settings)
        return load(settings)

    load = gigatoken_rs.load_hf_json
    monkeypatch.setattr(gigatoken_rs, "load_hf_json", counting_load)
    engine = encoder.FastEncoder(
        gpt2, allow_special_tokens=False, cache_bytes=cache_bytes
    )
    for _ in range(3):
        assert engine.encode([b"text"])[0].tolist() == [5239]
    assert len(loaded) == num_loads


def with_added_token(gpt2, content, **flags):
    """GPT-2's tokenizer with one more token, and the ids' place for it."""
    tokenizer = tokenizers.Tokenizer.from_str(gpt2)
    special = flags.pop("special", False)
    token = tokenizers.AddedToken(content, special=special, **flags)
    (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    return tokenizer.to_str()


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"single_word": True},
        {"lstrip": True},
        {"rstrip": True},
        {"normalized": True},
        {"special": True, "single_word": True},
        {"special": True, "lstrip": True},
        {"special": True, "rstrip": True},
    ],
)
def test_added_tokens_that_a_sample_lacks_are_not_lost(gpt2, flags):
    """Each is 100 times in the text, and never in the sample."""
    tokenizer_json = with_added_token(gpt2, "zzmark", **flags)
    special = flags.get("special", False)
    chosen = engine_choice.choose(
        tokenizer_json, [b"a sample without it"], allow_special_tokens=special
    )
    text = b"one zzmark , zzmark\n" * 50
    tokens, _ = make(tokenizer_json, chosen, special=special).encode([text])
    assert np.count_nonzero(tokens == 50257) == 100


def test_samples_on_which_all_is_equal_prove_nothing_about_such_tokens(
    gpt2, monkeypatch
):
    monkeypatch.setitem(encoder.ENGINES, encoder.FAST, encoder.ReferenceEncoder)
    tokenizer_json = with_added_token(gpt2, "zzmark", single_word=True)
    for content, chosen in ((gpt2, encoder.FAST), (tokenizer_json, encoder.REFERENCE)):
        sample = [b"one zzmark two"]
        assert chosen == engine_choice.choose(
            content, sample, allow_special_tokens=False
        )


def test_a_sample_would_not_show_that_the_fast_engine_loses_a_token(gpt2):
    """Why such tokens are left to the reference at once."""
    tokenizer_json = with_added_token(gpt2, "zzmark", single_word=True)
    sample, text = [b"xzzmark y"], [b"one zzmark two"]
    fast, slow = (
        make(tokenizer_json, engine) for engine in (encoder.FAST, encoder.REFERENCE)
    )
    assert fast.encode(sample)[0].tolist() == slow.encode(sample)[0].tolist()
    assert fast.encode(text)[0].tolist() != slow.encode(text)[0].tolist()


def test_special_tokens_that_are_text_leave_the_fast_engine(gpt2):
    tokenizer_json = with_added_token(gpt2, "<|mark|>", special=True, lstrip=True)
    chosen = engine_choice.choose(tokenizer_json, [], allow_special_tokens=False)
    assert chosen == encoder.FAST


@pytest.mark.parametrize("content", ["zz mark", "zzmark"])
def test_blocks_are_not_cut_beside_a_token_that_takes_spaces(gpt2, content):
    flags = {"rstrip": True} if " " not in content else {}
    engine = make(with_added_token(gpt2, content, **flags), encoder.REFERENCE)
    parts = [f"one {content}  two ".encode()] * 30
    blocks = list(engine.blocks(parts, block_bytes=8))
    whole, _ = engine.encode([b"".join(parts)])
    assert engine.encode(blocks)[0].tolist() == whole.tolist()


def test_a_post_processor_adds_nothing(gpt2):
    """Neither to a document nor to a prompt: see test_sampling.py."""
    tokenizer = tokenizers.Tokenizer.from_str(gpt2)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>",
        special_tokens=[("<|endoftext|>", 50256)],
    )
    assert len(tokenizer.encode("one two").ids) == 4
    for engine in (encoder.FAST, encoder.REFERENCE):
        tokens, _ = make(tokenizer.to_str(), engine).encode([b"one two"])
        assert tokens.tolist() == [505, 734]
