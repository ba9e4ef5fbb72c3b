"""Standard benchmarks: rows, countings, files, and lm-eval as the judge of all."""

import dataclasses
import json
import math

import numpy as np
import pytest
import tensorflow as tf
from transformers import PreTrainedTokenizerFast

from configs.errors import DataError, UserError
from tests.conftest import shared, tiny_model
from trainer.checkpoints.pretrained import Pretrained
from trainer.evaluation import published
from trainer.evaluation.benchmarks import evaluator, row_scores
from trainer.evaluation.benchmarks.catalog import BENCHMARKS, load
from trainer.evaluation.benchmarks.rows import Row, RowMaker, Score
from trainer.models import create
from trainer.models.gpt2 import forward
from trainer.models.gpt2.architecture import ARCHITECTURE
from trainer.runtime.strategy import mirror_cpu

HELLASWAG = BENCHMARKS["hellaswag"].fields
START = 0
WORDS = {"The": 1, " fox": 2, " jumps": 3, " over": 4, " ": 5, " jumpsover": 6}


def encode(text):
    """Takes the longest word of the vocabulary at each place."""
    tokens = []
    while text:
        word = max(filter(text.startswith, WORDS), key=len)
        tokens.append(WORDS[word])
        text = text[len(word) :]
    return tokens


MAKE = RowMaker(encode, START, num_positions=4)


@pytest.mark.parametrize(
    ("context", "continuation", "row"),
    [
        ("The fox", " jumps over", Row([1, 2, 3, 4], 2)),
        # White space belongs to what follows it.
        ("The fox ", "jumps", Row([1, 2, 3], 1)),
        # The context alone has other tokens: as many are left out as it has.
        ("The jumps", "over fox", Row([1, 6, 2], 1)),
        ("", "The fox", Row([START, 1, 2], 2)),
        ("The fox jumps over fox", " jumps", Row([2, 3, 4, 2, 3], 1)),
    ],
)
def test_a_continuation_is_scored_after_its_context(context, continuation, row):
    assert MAKE.joint(context, continuation) == row


def test_the_parts_of_a_completion_are_encoded_apart():
    assert MAKE.separate("The", " jumps over") == Row([1, 3, 4], 2)
    for continuation, number in ((" fox" * 5, 5), ("", 0)):
        with pytest.raises(DataError, match=f"positions, 4\\. Received: {number}"):
            MAKE.separate("The", continuation)


@pytest.mark.parametrize("num_words", [1, 3, 4, 5, 8, 9, 10])
def test_a_rolling_text_is_scored_once_with_full_windows(num_words):
    tokens = [START, *np.random.default_rng(0).integers(1, 5, num_words).tolist()]
    words = {token: word for word, token in WORDS.items()}
    rows = MAKE.rolling("".join(words[token] for token in tokens[1:]))
    scored = [token for row in rows for token in row.tokens[-row.num_scored :]]
    assert scored == tokens[1:]
    assert all(len(row.tokens) == min(5, len(tokens)) for row in rows)


CHARACTERS = RowMaker(lambda text: [*map(ord, text)], START, num_positions=999)


@pytest.mark.parametrize(
    ("name", "example", "expected"),
    [
        ("lambada", {"text": "He saw a red  fox"}, [("He saw a red", "  fox")]),
        (
            "blimp",
            {"sentence_good": "It runs.", "sentence_bad": "It run."},
            [("\0", " It runs."), ("\0", " It run.")],
        ),
        (
            "hellaswag",
            {
                "activity_label": "Roof",
                "ctx": "We climb. [title] Go. then",
                "ctx_a": "We climb. [title] Go.",
                "ctx_b": "then WE",
                "endings": ["[step] fall  off.", "nap."],
                "label": 0,
            },
            [
                ("We climb. [title] Go. then", " [step] fall  off."),
                ("We climb. [title] Go. then", " nap."),
                ("Roof: We climb.. Go. Then we", "  fall off."),
                ("Roof: We climb.. Go. Then we", " nap."),
            ],
        ),
        (
            "wikitext",
            {"page": ' = = = Du Fu = = = \n He , a " poet " , had 1 @,@ 200 , N .'},
            [("\0", ' === Du Fu ===\nHe, a "poet", had 1,200, 1 .')],
        ),
    ],
)
def test_what_is_scored_of_an_example(name, example, expected):
    rows = BENCHMARKS[name].rows(example, CHARACTERS)
    texts = ["".join(map(chr, row.tokens)) for row in rows]
    cuts = [len(row.tokens) - row.num_scored for row in rows]
    assert [(t[:n], t[n:]) for t, n in zip(texts, cuts, strict=True)] == expected


def test_words_and_contexts_are_encoded_as_one_text():
    """What a tokenizer joins beyond the context belongs to what is scored."""
    assert BENCHMARKS["lambada"].rows({"text": "The  fox"}, MAKE) == [Row([1, 5, 2], 2)]


def scores(*rows):
    """Makes scores of lists of (log-likelihood, is the likeliest)."""
    return [Score(*(np.array(c) for c in zip(*row, strict=True))) for row in rows]


def test_the_edition_of_lambada_is_known_by_its_capitals():
    texts = [{"text": "a fox"}, {"text": "A dog"}]
    describe = BENCHMARKS["lambada"].describe
    assert describe(texts) == {"edition": "OpenAI's"}
    assert describe(texts[:1]) == {"edition": "the original, in lower case"}


def test_lambada_counts_words_and_last_tokens():
    rows = [
        scores([(-1.0, True), (-2.0, True)]),
        scores([(-3.0, False), (-4.0, True)]),
    ]
    assert BENCHMARKS["lambada"].figures([{}, {}], rows) == {
        "accuracy": 0.5,
        "perplexity": pytest.approx(math.exp(5)),
        "last_token_accuracy": 1.0,
        "last_token_perplexity": pytest.approx(math.exp(3)),
    }


def test_of_two_sentences_the_good_one_is_at_least_as_likely():
    pairs = [((-1.0, -2.0), (-4.0, 0.0)), ((-1.0,), (-1.0,)), ((-3.0,), (-2.0,))]
    pairs.append(((-2.0,), (-3.0,)))
    rows = [scores(*([(x, True) for x in row] for row in pair)) for pair in pairs]
    assert BENCHMARKS["blimp"].figures([{}] * 4, rows) == {"accuracy": 3 / 4}


def test_wikitexts_loss_is_divided_by_the_published_text():
    """Its words are what is between white space, and so are both empty ends."""
    pages = [{"page": " a \u2014 , \n"}, {"page": "b ."}]
    rows = [scores([(-3.0, True), (-2.0, False)], [(-4.0, True)]), scores([(-1, True)])]
    assert BENCHMARKS["wikitext"].figures(pages, rows) == {
        "words": 7,
        "bytes": 13,
        "word_perplexity": pytest.approx(math.exp(10 / 7)),
        "byte_perplexity": pytest.approx(math.exp(10 / 13)),
        "bits_per_byte": pytest.approx(10 / 13 / math.log(2)),
    }


@pytest.mark.parametrize(
    ("endings", "totals"),
    [
        (["\u00e9" * 4, "abcdef"], (-4.0, -5.0)),  # not over bytes: -4/8 > -5/6
        (["[substep] ab", "abcdef"], (-3.0, -5.0)),  # nor over marks: -3/12 > -5/6
        (["a", "ab"], (-2.9, -4.5)),  # nor over a space before them: -2.9/2 > -4.5/3
    ],
)
def test_hellaswag_counts_the_characters_that_are_scored(endings, totals):
    example = {"endings": endings, "label": 1}
    rows = scores(*([(total, True)] for total in totals * 2))
    figures = BENCHMARKS["hellaswag"].figures([example], [rows])
    assert (figures["accuracy"], figures["normalized_accuracy"]) == (0, 1)
    assert figures["normalized_completion_accuracy"] == 0  # each is of one token


def test_hellaswag_normalizes_by_tokens_or_by_characters():
    example = {"endings": ["ab", "abcdef", "abc", "abcd"], "label": "1"}
    bad, long = [(-9.0, True)], [(-1.0, True)] * 5
    completions = scores([(-4.0, True)], long, bad, bad)
    harness = scores([(-4.0, True)], long, [(-1.5, True)], bad)
    figures = BENCHMARKS["hellaswag"].figures([example], [completions + harness])
    assert figures == {
        "accuracy": 0.0,
        "completion_accuracy": 0.0,
        "normalized_accuracy": 0.0,  # -5/6 < -1.5/3
        "normalized_completion_accuracy": 1.0,
    }
    # Of TFDS, there is no harness's.
    figures = BENCHMARKS["hellaswag"].figures([example], [completions])
    assert sorted(figures) == ["completion_accuracy", "normalized_completion_accuracy"]
    with pytest.raises(DataError, match="Received: ''"):
        BENCHMARKS["hellaswag"].rows({**example, "label": ""}, MAKE)


def random_rows(*lengths, context=None):
    generator = np.random.default_rng(0)
    rows = []
    for length in lengths:
        num_scored = int(generator.integers(1, length))
        tokens = generator.integers(1, 97, length).tolist()
        if context:
            tokens = [*context, *tokens[-num_scored:]]
        rows.append(Row(tokens, num_scored))
    return rows


# Rows of their own, and those that share a context, up to the end of the positions.
ROWS = [
    *random_rows(2, 5, 65, 81, 30, 70, 3),
    *random_rows(20, 9, 2, 31, context=[7] * 10),
    *random_rows(30, 40, 50, 70, context=[7] * 5),
    *random_rows(*range(2, 9), context=[1]),
    # One token more than fits into a record.
    *(Row([*([8] * 5), *range(1, 1 + length)], length) for length in (40, 37)),
]


def score_rows(rows, num_replicas, *, attention="", precision="float32", **changes):
    """Returns the scores, and how many tokens each call of the network has."""
    calls = []

    def hidden_states(model, tokens, *arguments, **others):
        calls.append(tokens.shape.num_elements())
        return ARCHITECTURE.hidden_states(model, tokens, *arguments, **others)

    strategy = mirror_cpu(num_replicas)
    with strategy.scope():
        model = tiny_model(n_positions=80)
    trained = Pretrained(
        model,
        dataclasses.replace(ARCHITECTURE, hidden_states=hidden_states, **changes),
        *("causal_lm", "", "float32", "tiny", None, "", ""),
        attention=attention or "causal",
    )
    settings = {"precision": precision, "batch_size": 2, "end_of_text_id": 0}
    return row_scores.score(trained, strategy, rows, **settings), calls


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"num_replicas": 2}, 1e-4),
        ({"num_replicas": 1, "precision": "bfloat16"}, 0.05),
        ({"num_replicas": 1, "attention": "document"}, 1e-4),
        ({"num_replicas": 1, "knows_documents": False}, 1e-4),
        ({"num_replicas": 1, "computes_on_cpu": False}, 1e-4),
    ],
)
def test_rows_of_all_lengths_are_scored_as_alone(settings, tolerance, monkeypatch):
    """The judge is transformers' forward, row by row."""
    monkeypatch.setattr(forward, "QUERY_BLOCK", 32)  # of several blocks
    gpt2 = tiny_model(n_positions=80)
    scores, _ = score_rows(ROWS, **settings)
    for row, score in zip(ROWS, scores, strict=True):
        logits = gpt2(tf.constant([row.tokens[:-1]])).logits[0, -row.num_scored :]
        likelihoods = tf.nn.log_softmax(logits).numpy()
        labels = row.tokens[-row.num_scored :]
        expected = likelihoods[np.arange(row.num_scored), labels]
        np.testing.assert_allclose(score.log_likelihoods, expected, rtol=tolerance)
        if tolerance < 1e-3:
            assert list(score.is_likeliest) == list(likelihoods.argmax(1) == labels)


@pytest.mark.parametrize(
    ("knows_documents", "length"), [(True, 80), (False, 64)], ids=["shared", "apart"]
)
def test_four_endings_share_one_record_with_their_context(knows_documents, length):
    """Apart, each is padded to 64 tokens."""
    rows = [Row([*range(40), *([ending] * 10)], 10) for ending in (5, 6, 7, 8)]
    _, calls = score_rows(rows, 1, knows_documents=knows_documents)
    assert set(calls) == {2 * length}


def test_separate_documents_are_scored_as_in_training():
    """What stands before the last end of a document has no effect."""
    rows = random_rows(20, 9, 31, context=[7] * 10)
    behind_another = [Row([9, 0, *row.tokens], row.num_scored) for row in rows]
    expected, _ = score_rows(rows, 1, attention="document")
    scores, _ = score_rows(behind_another, 1, attention="document")
    for one, other in zip(scores, expected, strict=True):
        np.testing.assert_allclose(
            one.log_likelihoods, other.log_likelihoods, rtol=1e-5
        )


def test_an_evaluation_gives_each_example_the_scores_of_its_rows(dataset, monkeypatch):
    """Texts begin with the tokenizer's own end of text, whatever its id is."""
    file = str(dataset[0] / "tokenizer" / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=file, eos_token="A")
    monkeypatch.setattr(create, "load_tokenizer", lambda *_: tokenizer)
    calls = []

    def score(*arguments, **settings):
        calls.append((arguments[2], settings))
        return scores(*([(-float(len(row.tokens)), True)] for row in arguments[2]))

    monkeypatch.setattr(row_scores, "score", score)
    trained = Pretrained(
        tiny_model(), ARCHITECTURE, "causal_lm", "", "float32", "tiny", None, "", ""
    )
    pairs = [("B", "BB"), ("BBB", "B"), ("B", "BBBB"), ("B", "BB")]
    examples = [{"sentence_good": good, "sentence_bad": bad} for good, bad in pairs]
    result = evaluator.evaluate(
        trained, mirror_cpu(1), "blimp", examples, precision="bfloat16", batch_size=3
    )
    assert result["accuracy"] == 3 / 4
    ((rows, settings),) = calls
    start = tokenizer.eos_token_id
    assert {row.tokens[0] for row in rows} == {start} != {0}
    expected = {"precision": "bfloat16", "batch_size": 3, "end_of_text_id": start}
    assert settings == expected


def test_the_pages_of_wikitext_begin_at_titles(tmp_path):
    text = (
        " \n = Robert = \n \n He . \n = = Life = = \n Long . \n = Du Fu = \n Poet . \n"
    )
    (tmp_path / "wiki.test.raw").write_text(text)
    pages = load("wikitext", str(tmp_path / "wiki.test.raw"))
    robert, du_fu = text.split(" = Du Fu")
    assert [page["page"] for page in pages] == [
        robert.removeprefix(" \n").removesuffix("\n"),
        f" = Du Fu{du_fu}",
    ]


def test_wikitexts_pages_are_those_that_the_harness_scores():
    """Its published data has 62 pages, and its figure is of these bytes."""
    pages = load("wikitext", shared("wikitext-2/wiki.test.raw"))
    figures = BENCHMARKS["wikitext"].figures(pages, [[]])
    assert (len(pages), figures["words"], figures["bytes"]) == (62, 241_335, 1_290_527)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("lambada", '{"text": "A fox"}\n{"txt": "A"}\n', r"x\.jsonl:2: .* fields text"),
        ("lambada", '{"text": "A fox"}\n["text"]\n', r"x\.jsonl:2: "),
        ("lambada", '{"text": "A \\ud800"}\n', r"x\.jsonl:1: "),
        ("hellaswag", '{"ctx": "A", "endings": ["b"], "label": 0}\n', "activity_label"),
        ("hellaswag", json.dumps(dict.fromkeys(HELLASWAG, "") | {"endings": [1]}), "1"),
        ("blimp", "\n\n", "which has none"),
        ("wikitext", b"\xff", "UTF-8"),
    ],
)
def test_a_file_that_is_not_the_benchmarks_is_one_message(
    tmp_path, name, content, message
):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((DataError, UserError), match=message):
        load(name, str(path))


def test_without_a_file_the_examples_are_those_of_tfds(monkeypatch):
    """By the names of the published file; the text's line end is not part of it."""
    import tensorflow_datasets

    examples = {
        "lambada": {"passage": np.array(b"a clear stone\n", object)},
        "hellaswag": {
            "context": np.array(b"A fox", object),
            "endings": np.array([b"b", b"c"], object),
            "label": np.int32(1),
        },
    }

    def tfds_load(name, **_):
        columns = {key: value[None] for key, value in examples[name].items()}
        return tf.data.Dataset.from_tensor_slices(columns)

    monkeypatch.setattr(tensorflow_datasets, "load", tfds_load)
    assert load("lambada", "") == [{"text": "a clear stone"}]
    assert load("hellaswag", "") == [
        {"ctx": "A fox", "endings": ["b", "c"], "label": 1}
    ]
    with pytest.raises(UserError, match="needs `--benchmark_file`"):
        load("wikitext", "")


def test_published_figures_stand_beside_those_of_the_same_benchmark():
    protocol = {"benchmark": "lambada", "edition": "OpenAI's", "context_length": 1024}
    result = {"examples": 5153, "protocol": protocol}
    harness, openai = published.compare(result, "gpt2", "as published")
    assert harness["figures"] == {"accuracy": 0.3256, "perplexity": 40.06}
    assert openai["figures"]["last_token_accuracy"] == 0.4599
    assert not harness["differences"] + openai["differences"]
    other = {"examples": 12, "protocol": {**protocol, "edition": "the original"}}
    (differences, _) = published.compare(other, "gpt2", "as published")
    assert differences["differences"] == [
        "it is of LAMBADA's test split, 5,153 examples: this text has 12",
        "edition OpenAI's there, the original here",
    ]
