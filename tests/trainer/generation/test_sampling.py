"""Generation: as PyTorch's, whatever stands beside it; seeds and softmax decide."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf
import tokenizers
from transformers import GPT2TokenizerFast

from configs.errors import UserError
from tests.conftest import VOCABULARY_SIZE, tiny_model
from trainer.exporting import huggingface
from trainer.generation.sampling import Sampler
from trainer.generation.settings import Settings
from trainer.models.gpt2.architecture import ARCHITECTURE as GPT2


@pytest.fixture(scope="module")
def tokenizer():
    """One token a word: `w5` is token 5."""
    vocabulary = {f"w{index}": index for index in range(1, VOCABULARY_SIZE)}
    vocabulary["<|endoftext|>"] = 0
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(vocabulary, unk_token="<|endoftext|>")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    end = "<|endoftext|>"
    return GPT2TokenizerFast(tokenizer_object=words, eos_token=end, bos_token=end)


@pytest.fixture(scope="module")
def gpt2():
    return tiny_model(n_positions=64, n_layer=1)


def ids(text):
    return [int(word.removeprefix("w")) for word in text.split()]


@pytest.fixture(scope="module")
def sampler(gpt2, tokenizer):
    """A function that makes samplers, and compiles equal ones once for all tests."""

    @functools.cache
    def make(batch_size=8, **settings):
        settings = Settings(**{"max_new_tokens": 8, **settings})
        return Sampler(GPT2, gpt2, tokenizer, settings, batch_size=batch_size)

    return make


def first_texts(sampler, prompts, seed=0):
    """The first continuation of each prompt."""
    return [texts[0] for texts in sampler(prompts, seed=seed)]


def random_prompts(count):
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 30, count)
    return [
        " ".join(f"w{t}" for t in generator.integers(1, VOCABULARY_SIZE, length))
        for length in lengths
    ]


def number_for(settings):
    """Returns how many prompts to try: a search with beams takes them one by one."""
    return 10 if "num_beams" in settings else 50


def test_greedy_equals_taking_the_likeliest_token_by_hand(gpt2, sampler):
    prompts = random_prompts(10)
    texts = first_texts(sampler(temperature=0.0), prompts)
    for prompt, text in zip(prompts[:4], texts, strict=False):
        tokens = ids(prompt)
        for _ in range(8):
            logits = gpt2(tf.constant([tokens])).logits[0, -1]
            tokens.append(int(tf.argmax(logits)))
            if tokens[-1] == 0:
                tokens.pop()
                break
        assert ids(text) == tokens


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 9, "top_p": 0.8, "repetition_penalty": 1.4},
        {
            "min_p": 0.01,
            "typical_p": 0.9,
            "no_repeat_ngram_size": 2,
            "bad_words": ("w3", "w5 w6"),
            "min_new_tokens": 5,
            "stop": ("w9",),
        },
        pytest.param({"num_beams": 3}, marks=pytest.mark.slow),
    ],
)
def test_a_batch_gives_each_prompt_what_it_gets_alone(sampler, settings):
    """Padding, the rows beside it and the order change nothing."""
    prompts = random_prompts(number_for(settings))
    batches, alone = sampler(**settings), sampler(batch_size=1, **settings)
    together = batches(prompts)
    assert together == [texts for prompt in prompts for texts in alone([prompt])]
    assert together == batches(prompts[::-1])[::-1]


@pytest.fixture(scope="module")
def judge(gpt2, tokenizer, tmp_path_factory):
    """PyTorch's model of the exported weights."""
    pytest.importorskip("torch", reason="needs the extra `parity`")
    from transformers import GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("export")
    huggingface.save(gpt2, tokenizer, folder, tf.float32)
    return GPT2LMHeadModel.from_pretrained(folder).eval()


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": 0.0, "repetition_penalty": 1.3},
        {"temperature": 0.0, "min_new_tokens": 8, "no_repeat_ngram_size": 2},
        pytest.param(
            {"num_beams": 2, "repetition_penalty": 1.3}, marks=pytest.mark.slow
        ),
    ],
)
def test_the_text_is_that_of_pytorch(sampler, judge, settings):
    """On the exported model, of many prompts, which PyTorch takes one by one."""
    import torch

    prompts = random_prompts(number_for(settings))
    texts = first_texts(sampler(**settings), prompts)
    arguments = {name: v for name, v in settings.items() if name != "temperature"}
    for prompt, text in zip(prompts, texts, strict=True):
        tokens = torch.tensor([ids(prompt)])
        (expected,) = judge.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=8,
            do_sample=False,
            **arguments,
        ).tolist()
        expected = expected[: expected.index(0)] if 0 in expected else expected
        assert ids(text) == expected


def test_the_same_seed_gives_the_same_text(sampler):
    draw = sampler()
    (first,) = draw(["w3"], 2, seed=1)
    assert [first] == draw(["w3"], 2, seed=1)
    assert first[0] != first[1]
    (other,) = draw(["w3"], 2, seed=2)
    assert not set(first) & set(other)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 9, "top_p": 0.8, "repetition_penalty": 1.4},
    ],
)
def test_a_stream_shows_the_same_text(sampler, settings):
    alone = sampler(batch_size=1, **settings)
    prompts = ["w9 w1 w4", " ".join(["w5"] * 12)]
    for prompt, expected in zip(prompts, first_texts(alone, prompts, 3), strict=True):
        pieces = []
        alone.stream(prompt, seed=3, write=pieces.append)
        assert "".join(pieces) == expected
        assert len(pieces) > 4


def test_prompts_of_all_lengths_share_a_program(gpt2, tokenizer):
    settings = Settings(max_new_tokens=4, temperature=0.0)
    sampler = Sampler(GPT2, gpt2, tokenizer, settings, batch_size=2)
    for length in (1, 5, 16, 40):
        sampler([" ".join(["w3"] * length)] * (1 + length % 2))
    assert sampler._add_tokens.experimental_get_tracing_count() == 1


def drawn_tokens(gpt2, tokenizer, count, **settings):
    sampler = Sampler(
        GPT2, gpt2, tokenizer, Settings(max_new_tokens=1, **settings), batch_size=count
    )
    (texts,) = sampler(["w3"], count)
    return [ids(text)[-1] if len(ids(text)) > 1 else 0 for text in texts]


def test_samples_follow_the_softmax(gpt2, tokenizer):
    temperature = 0.5
    drawn = drawn_tokens(gpt2, tokenizer, 4000, temperature=temperature)
    observed = np.bincount(drawn, minlength=VOCABULARY_SIZE) / len(drawn)
    logits = gpt2(tf.constant([[3]])).logits[0, -1] / temperature
    expected = tf.nn.softmax(logits).numpy()
    # Four standard deviations of a share of 4,000 draws.
    bound = 4 * np.sqrt(expected * (1 - expected) / len(drawn)) + 1e-3
    assert (np.abs(observed - expected) < bound).all()


@pytest.mark.parametrize("limit", [{"top_k": 3}, {"top_p": 0.1}])
def test_only_the_likeliest_are_drawn(gpt2, tokenizer, limit):
    drawn = set(drawn_tokens(gpt2, tokenizer, 500, **limit))
    probabilities = tf.nn.softmax(gpt2(tf.constant([[3]])).logits[0, -1]).numpy()
    ranked = np.argsort(-probabilities)
    if "top_k" in limit:
        allowed = set(ranked[:3])
    else:
        count = int(np.searchsorted(np.cumsum(probabilities[ranked]), 0.1)) + 1
        allowed = set(ranked[:count])
    assert drawn == allowed


def test_a_prompt_that_leaves_no_room_is_refused(gpt2, tokenizer):
    settings = Settings(max_new_tokens=60, temperature=0.0)
    sampler = Sampler(GPT2, gpt2, tokenizer, settings)
    sampler(["w1 w2 w3 w4"])
    with pytest.raises(UserError, match="Received: 5 and 60"):
        sampler(["w1 w2 w3 w4 w5"])


@pytest.mark.parametrize(
    ("settings", "count", "message"),
    [
        ({"num_beams": 2, "temperature": 0.5}, 1, "excludes `--temperature`"),
        ({"num_beams": 2}, 3, "Received: 3. Use 2"),
        ({"temperature": 0.0}, 2, "Received: 2. Use 1"),
        (
            {"temperature": float("nan")},
            1,
            "must be a number that float32 holds, .* Received: nan",
        ),
        ({"temperature": 1e-46}, 1, "must be 0, or at least 1e-06.*Received: 1e-46"),
        (
            {"repetition_penalty": 1e60},
            1,
            "must be a number that float32 holds, .* Received: 1e[+]60",
        ),
        ({"repetition_penalty": float("inf")}, 1, "Received: inf"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings, count, message):
    with pytest.raises(UserError, match=message):
        Settings(**settings).check(count)


def test_an_empty_prompt_begins_a_text(sampler):
    alone = sampler(batch_size=1, temperature=0.0)
    first, second = first_texts(alone, ["", "<|endoftext|>"])
    assert first == second


def test_a_prompt_gets_no_token_that_a_dataset_lacks(gpt2, tokenizer):
    """A post-processor's [CLS] … [SEP] would let the text begin behind its end."""
    wrapped = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    wrapped.post_processor = tokenizers.processors.TemplateProcessing(
        single="w1 $A <|endoftext|>", special_tokens=[("w1", 1), ("<|endoftext|>", 0)]
    )
    wrapped.enable_truncation(2)
    end = "<|endoftext|>"
    fast = GPT2TokenizerFast(tokenizer_object=wrapped, eos_token=end, bos_token=end)
    assert fast("w9 w4")["input_ids"] == [1, 9, 4, 0]
    settings = Settings(max_new_tokens=8, temperature=0.0)
    plain, other = (Sampler(GPT2, gpt2, t, settings) for t in (tokenizer, fast))
    prompts = ["w9 w4 w7", "", "w2"]
    assert plain(prompts) == other(prompts)


def test_a_prompt_may_begin_a_document(gpt2, tokenizer):
    settings = Settings(max_new_tokens=8, temperature=0.0)
    plain = Sampler(GPT2, gpt2, tokenizer, settings)
    document = Sampler(GPT2, gpt2, tokenizer, settings, begins_document=True)
    prompts = ["w3 w4", "w11"]
    expected = first_texts(plain, [f"<|endoftext|> {prompt}" for prompt in prompts])
    assert first_texts(document, prompts) == expected
    assert expected != first_texts(plain, prompts)


def test_an_empty_prompt_begins_as_the_documents_of_the_dataset(gpt2, tokenizer):
    settings = Settings(max_new_tokens=8, temperature=0.0)
    started = Sampler(GPT2, gpt2, tokenizer, settings, start_token="w7")
    assert first_texts(started, [""]) == first_texts(started, ["w7"])
    assert first_texts(started, [""]) != first_texts(
        Sampler(GPT2, gpt2, tokenizer, settings), [""]
    )


def test_bad_words_and_stop_texts_do_not_appear(gpt2, tokenizer):
    """Of all 96 words but two, none is drawn, alone or behind another."""
    words = tuple(f"w{index}" for index in range(3, VOCABULARY_SIZE))
    settings = Settings(max_new_tokens=20, min_new_tokens=20, bad_words=words)
    (texts,) = Sampler(GPT2, gpt2, tokenizer, settings)(["w9"], 3)
    assert {word for text in texts for word in text.split()[1:]} == {"w1", "w2"}
    stopped = dataclasses.replace(settings, stop=("w2",))
    (cut,) = Sampler(GPT2, gpt2, tokenizer, stopped)(["w9"], 3)
    assert cut == [text[: text.index(" w2") + 1] for text in texts]


def test_a_stop_text_ends_the_work(gpt2, tokenizer):
    settings = Settings(max_new_tokens=30, min_new_tokens=30, temperature=0.0)
    ((text,),) = Sampler(GPT2, gpt2, tokenizer, settings)(["w3"])
    word = text.split()[3]
    sampler = Sampler(
        GPT2, gpt2, tokenizer, dataclasses.replace(settings, stop=(f" {word}",))
    )
    ((cut,),) = sampler(["w3"])
    assert cut == text[: text.index(f" {word}")]
    assert sampler.num_generated == len(ids(cut))
