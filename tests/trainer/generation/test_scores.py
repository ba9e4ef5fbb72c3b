"""Limits on the next token, as PyTorch's transformers has them."""

import numpy as np
import pytest
import tensorflow as tf

from trainer.generation import scores
from trainer.generation.loop import Text
from trainer.generation.settings import Settings

END = 0
WORDS = [[7], [3, 4], [9, 9, 2], [5, 6, 1]]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="needs the extra `parity`")


def rows():
    """Logits [6, 60], and rows of small ids, which repeat, of 1 to 28."""
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (6, 60)).astype(np.float32)
    texts = [generator.integers(1, 10, n).tolist() for n in (1, 2, 5, 9, 20, 28)]
    texts[1] = [9, 8]  # PyTorch overlooks words of all of a text and one token more
    texts[3] += [3]
    texts[4] += [9, 9]
    return logits, texts


def scored(logits, texts, number=0, **settings):
    """Ours, of all rows at once, padded with a token that would repeat."""
    width = max(map(len, texts)) + 2
    padded = [[*row, *[row[0]] * (width - len(row))] for row in texts]
    text = Text(tf.constant(padded), tf.constant([len(row) for row in texts]))
    words = WORDS if settings.pop("bad_words", False) else ()
    result = scores.score(
        tf.constant(logits),
        text,
        tf.constant(number),
        Settings(**settings),
        end=END,
        bad_words=words,
    )
    return result.numpy()


def judged(torch, logits, texts, *processors):
    """PyTorch's, of each row alone."""
    from transformers import LogitsProcessorList

    chain = LogitsProcessorList(processors)
    results = [
        chain(torch.tensor([text]), torch.tensor(row[None]))
        for row, text in zip(logits, texts, strict=True)
    ]
    return torch.cat(results).numpy()


@pytest.mark.parametrize(
    ("settings", "name", "arguments"),
    [
        ({"temperature": 0.7}, "TemperatureLogitsWarper", (0.7,)),
        ({"top_k": 9}, "TopKLogitsWarper", (9,)),
        ({"top_k": 50}, "TopKLogitsWarper", (50,)),
        ({"top_p": 0.8}, "TopPLogitsWarper", (0.8,)),
        ({"min_p": 0.2}, "MinPLogitsWarper", (0.2,)),
        ({"min_p": 1.0}, "MinPLogitsWarper", (1.0,)),
        ({"typical_p": 0.3}, "TypicalLogitsWarper", (0.3,)),
        ({"typical_p": 0.95}, "TypicalLogitsWarper", (0.95,)),
        (
            {"repetition_penalty": 1.4},
            "RepetitionPenaltyLogitsProcessor",
            (1.4,),
        ),
        *(
            ({"no_repeat_ngram_size": n}, "NoRepeatNGramLogitsProcessor", (n,))
            for n in (1, 2, 3)
        ),
        ({"bad_words": True}, "NoBadWordsLogitsProcessor", (WORDS,)),
    ],
)
def test_a_limit_is_that_of_pytorch(torch, settings, name, arguments):
    import transformers

    logits, texts = rows()
    expected = judged(torch, logits, texts, getattr(transformers, name)(*arguments))
    assert (expected != logits).any()
    np.testing.assert_allclose(scored(logits, texts, **settings), expected, rtol=1e-6)


def test_limits_together_are_those_of_pytorch(torch):
    import transformers as t

    logits, texts = rows()
    expected = judged(
        torch,
        logits,
        texts,
        t.RepetitionPenaltyLogitsProcessor(1.3),
        t.NoRepeatNGramLogitsProcessor(2),
        t.NoBadWordsLogitsProcessor(WORDS),
        t.TemperatureLogitsWarper(0.8),
        t.TopKLogitsWarper(30),
        t.TopPLogitsWarper(0.9),
        t.MinPLogitsWarper(0.05),
        t.TypicalLogitsWarper(0.8),
    )
    settings = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}
    settings |= {"bad_words": True, "temperature": 0.8, "top_k": 30, "top_p": 0.9}
    found = scored(logits, texts, min_p=0.05, typical_p=0.8, **settings)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_end_of_text_comes_after_the_least_number_of_tokens():
    logits, texts = rows()
    for number, allowed in ((0, False), (2, False), (3, True)):
        found = scored(logits, texts, number, min_new_tokens=3)
        assert np.isfinite(found[:, END]).all() == allowed
        np.testing.assert_array_equal(found[:, 1:], logits[:, 1:])


def test_rows_have_limits_of_their_own():
    logits, texts = rows()
    logits = logits[:4]
    found = scores.keep_likely(
        tf.constant(logits),
        tf.constant([1.0, 0.5, 1.0, 0.0]),
        tf.constant([0, 5, 0, 0]),
        tf.constant([1.0, 1.0, 0.5, 1.0]),
    ).numpy()
    each = [{}, {"temperature": 0.5, "top_k": 5}, {"top_p": 0.5}, {}]
    for row, settings in enumerate(each):
        alone = scored(logits[row : row + 1], texts[:1], **settings)
        np.testing.assert_allclose(found[row : row + 1], alone, rtol=1e-6)


def test_a_limit_beyond_the_vocabulary_drops_nothing():
    logits, texts = rows()
    np.testing.assert_array_equal(scored(logits, texts, top_k=99), logits)


@pytest.mark.parametrize("num_ranked", [1, 4, 20])
def test_more_is_sorted_where_the_likeliest_do_not_hold_enough(monkeypatch, num_ranked):
    logits, texts = rows()
    limits = [{"top_p": p} for p in (0.1, 0.6, 0.99)] + [{"top_k": 30, "top_p": 0.9}]
    expected = [scored(logits, texts, **limit) for limit in limits]
    monkeypatch.setattr(scores, "_NUM_RANKED", num_ranked)
    for limit, values in zip(limits, expected, strict=True):
        np.testing.assert_array_equal(scored(logits, texts, **limit), values)


def test_a_tie_is_not_broken():
    logits, texts = rows()
    logits[:, 7] = logits[:, 9] = 20.0
    for settings in ({"top_k": 1}, {"top_p": 0.1}, {"min_p": 1.0}):
        found = scored(logits, texts, **settings)
        assert (np.isfinite(found).sum(axis=1) == 2).all()


def test_all_but_one_token_dropped_still_leave_one():
    logits, texts = rows()
    for settings in ({"top_p": 0.0}, {"min_p": 1.0}, {"typical_p": 1e-6}):
        assert np.isfinite(scored(logits, texts, **settings)).any(axis=1).all()
