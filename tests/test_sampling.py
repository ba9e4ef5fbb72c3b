"""Generation: padding changes nothing, seeds decide, the distribution is right."""

import numpy as np
import pytest
import tensorflow as tf
import tokenizers
from transformers import GPT2TokenizerFast

from configs.schema import ConfigError
from tests.conftest import VOCABULARY_SIZE, tiny_model
from trainer.sampling import Sampler


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
    return tiny_model(n_positions=64)


def ids(text):
    return [int(word.removeprefix("w")) for word in text.split()]


def test_greedy_equals_taking_the_likeliest_token_by_hand(gpt2, tokenizer):
    sampler = Sampler(gpt2, tokenizer, max_new_tokens=8, temperature=0.0)
    prompts = ["w3", "w9 w1 w4", "w2 w2 w7 w8 w5 w6 w1 w3 w4"]
    for prompt, text in zip(prompts, sampler(prompts), strict=True):
        tokens = ids(prompt)
        for _ in range(8):
            logits = gpt2(tf.constant([tokens])).logits[0, -1]
            tokens.append(int(tf.argmax(logits)))
            if tokens[-1] == 0:
                tokens.pop()
                break
        assert ids(text) == tokens


def test_the_same_seed_gives_the_same_text(gpt2, tokenizer):
    sampler = Sampler(gpt2, tokenizer, max_new_tokens=12)
    first, second = sampler(["w3", "w3"], seed=1)
    assert [first, second] == sampler(["w3", "w3"], seed=1)
    assert first != second
    assert [first, second] != sampler(["w3", "w3"], seed=2)


def test_prompts_of_about_the_same_length_share_a_program(gpt2, tokenizer):
    sampler = Sampler(gpt2, tokenizer, max_new_tokens=4)
    for length in (1, 5, 16):
        sampler([" ".join(["w3"] * length)])
    assert sampler._compiled.experimental_get_tracing_count() == 1
    sampler([" ".join(["w3"] * 17)])
    assert sampler._compiled.experimental_get_tracing_count() == 2


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_softmax(gpt2, tokenizer, temperature):
    sampler = Sampler(gpt2, tokenizer, max_new_tokens=1, temperature=temperature)
    texts = sampler(["w3"] * 4000)
    drawn = [ids(text)[-1] if len(ids(text)) > 1 else 0 for text in texts]
    observed = np.bincount(drawn, minlength=VOCABULARY_SIZE) / len(drawn)
    logits = gpt2(tf.constant([[3]])).logits[0, -1] / temperature
    expected = tf.nn.softmax(logits).numpy()
    # Four standard deviations of a share of 4,000 draws.
    bound = 4 * np.sqrt(expected * (1 - expected) / len(drawn)) + 1e-3
    assert (np.abs(observed - expected) < bound).all()


@pytest.mark.parametrize("limit", [{"top_k": 3}, {"top_p": 0.1}])
def test_only_the_likeliest_are_drawn(gpt2, tokenizer, limit):
    sampler = Sampler(gpt2, tokenizer, max_new_tokens=1, **limit)
    texts = sampler(["w3"] * 500)
    drawn = {ids(text)[-1] if len(ids(text)) > 1 else 0 for text in texts}
    probabilities = tf.nn.softmax(gpt2(tf.constant([[3]])).logits[0, -1]).numpy()
    ranked = np.argsort(-probabilities)
    if "top_k" in limit:
        allowed = set(ranked[:3])
    else:
        count = int(np.searchsorted(np.cumsum(probabilities[ranked]), 0.1)) + 1
        allowed = set(ranked[:count])
    assert drawn == allowed


def test_a_prompt_that_leaves_no_room_is_refused(gpt2, tokenizer):
    sampler = Sampler(gpt2, tokenizer, max_new_tokens=60)
    sampler(["w1 w2 w3 w4"])
    with pytest.raises(ConfigError, match="Received: 5 and 60"):
        sampler(["w1 w2 w3 w4 w5"])


def test_an_empty_prompt_begins_a_text(gpt2, tokenizer):
    sampler = Sampler(gpt2, tokenizer, max_new_tokens=4, temperature=0.0)
    (text,) = sampler([""])
    (expected,) = sampler(["<|endoftext|>"])
    assert text == expected
