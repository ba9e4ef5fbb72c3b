"""Published figures stand beside one's own only where the protocols are the same."""

import pytest
from transformers import GPT2Config

from trainer.checkpoints import pretrained, run_checkpoints
from trainer.evaluation import published

SMALL = GPT2Config()
WHOLE = {
    "mode": "packed",
    "detokenizer": "wikitext",
    "context_length": 1024,
    "stride": 1024,
}
TUNED = "fine-tuned on 1 x 2,051,910 words"


def result(*, num_bytes=1_290_590, tokens=272_000, **protocol):
    return {
        "words": 241_211,
        "bytes": num_bytes,
        "tokens": tokens,
        "protocol": {**WHOLE, **protocol},
    }


def differences(found, name):
    (study,) = [f for f in found if f["study"].startswith(name)]
    return study["differences"]


def test_the_same_protocol_compares():
    found = published.compare(result(), SMALL, "as published")
    assert [f["study"].split(",")[0] for f in found] == [
        "WikiText-2 test",
        "WikiText-103 test",
    ]
    assert found[0]["differences"] == []
    assert found[0]["figures"] == {"token_perplexity": 23.15, "word_perplexity": 34.70}
    # Its own two figures tell of another text.
    assert differences(found, "WikiText-103") == [
        "1.096 tokens a word there, 1.128 here"
    ]


@pytest.mark.parametrize(
    ("changed", "trained", "expected"),
    [
        ({"stride": 512}, "as published", "stride 1024 there, 512 here"),
        (
            {"context_length": 256},
            "as published",
            "context_length 1024 there, 256 here",
        ),
        (
            {"detokenizer": "none"},
            "as published",
            "detokenizer wikitext there, none here",
        ),
        ({"mode": "document"}, "as published", "mode packed there, document here"),
        ({}, TUNED, f"weights as published there, {TUNED} here"),
        ({}, "of a folder", "weights as published there, of a folder here"),
        ({"tokens": 295_878}, "as published", "1.129 tokens a word there, 1.227 here"),
    ],
)
def test_each_difference_is_named(changed, trained, expected):
    found = published.compare(result(**changed), SMALL, trained)
    assert differences(found, "WikiText-2") == [expected]


def test_another_edition_of_the_text_is_named():
    found = published.compare(result(num_bytes=1_256_449), SMALL, "as published")
    assert "1,256,449" in differences(found, "WikiText-2")[0]


def test_models_and_texts_without_figures():
    assert not published.compare(result(), GPT2Config(n_embd=64), "as published")
    other = {**result(), "words": 1000}
    assert not published.compare(other, SMALL, "as published")
    large = GPT2Config(n_layer=36, n_embd=1280)
    found = published.compare(
        result(num_bytes=1_296_370, detokenizer="none", stride=512),
        large,
        "as published",
    )
    assert differences(found, "WikiText-2 test, stride 512") == []


def test_fine_tuned_figures_are_of_the_validation_split():
    fine_tuned = {**result(context_length=512, stride=512)}
    fine_tuned |= {"words": 213_886, "bytes": 1_146_846, "tokens": 237_532}
    found = published.compare(fine_tuned, SMALL, TUNED)
    assert [bool(f["differences"]) for f in found] == [True, False, True]
    assert found[1]["figures"] == {"loss": 2.94}


@pytest.mark.parametrize(
    ("step", "source", "origin"),
    [
        (15, "gpt2", "fine-tuned on 2 x 117 words"),  # 4 of 30 records a step
        (3, "gpt2", "fine-tuned on 0.4 x 117 words"),
        (15, "", "from random weights"),
    ],
)
def test_weights_are_named_by_what_they_have_seen(dataset, step, source, origin):
    """And not by what the run they are of was to see."""
    record = run_checkpoints.Record(
        format_version=run_checkpoints.FORMAT_VERSION,
        step=step,
        state_bytes=0,
        state_sha256="",
        config={
            "model": {"initial_checkpoint": source},
            "training": {"global_batch_size": 4, "num_epochs": 2},
        },
        model_config={},
        dataset_fingerprint="",
        tokenizer_fingerprint="",
    )
    assert pretrained._origin(str(dataset[0]), record) == origin
