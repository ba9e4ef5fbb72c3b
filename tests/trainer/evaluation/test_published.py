"""A result is compared with published figures of the same checkpoint and text."""

import pytest

from trainer.checkpoints import folders, pretrained
from trainer.evaluation import published

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


def differences(studies, name):
    (study,) = [study for study in studies if study["study"].startswith(name)]
    return study["differences"]


def test_the_same_protocol_compares():
    studies = published.compare(result(), "gpt2", "as published")
    assert [study["study"].split(",")[0] for study in studies] == [
        "WikiText-2 test",
        "WikiText-103 test",
    ]
    assert studies[0]["differences"] == []
    assert studies[0]["figures"] == {
        "token_perplexity": 23.15,
        "word_perplexity": 34.70,
    }
    # Its token and word perplexities are not of the same number of tokens.
    assert differences(studies, "WikiText-103") == [
        "1.096 tokens a word there, 1.128 here"
    ]


@pytest.mark.parametrize(
    ("changed", "weights", "expected"),
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
        (
            {"attention": "document"},
            "as published",
            "attention causal there, document here",
        ),
        ({}, TUNED, f"weights as published there, {TUNED} here"),
        ({"tokens": 295_878}, "as published", "1.129 tokens a word there, 1.227 here"),
    ],
)
def test_each_difference_is_named(changed, weights, expected):
    studies = published.compare(result(**changed), "gpt2", weights)
    assert differences(studies, "WikiText-2") == [expected]


def test_another_edition_of_the_text_is_named():
    studies = published.compare(result(num_bytes=1_256_449), "gpt2", "as published")
    assert "1,256,449" in differences(studies, "WikiText-2")[0]


def test_nothing_is_compared_without_figures_for_the_checkpoint_and_the_text():
    assert not published.compare(result(), "gpt3", "as published")
    other = {**result(), "words": 1000}
    assert not published.compare(other, "gpt2", "as published")


def test_a_model_without_a_published_name_is_not_compared():
    """Such as one of 12 layers and width 768 that is not GPT-2."""
    assert not published.compare(result(), "", "from random weights")


def test_large_compares_with_the_documentation_of_hugging_face():
    scored = result(num_bytes=1_296_370, detokenizer="none", stride=512)
    studies = published.compare(scored, "gpt2-large", "as published")
    assert differences(studies, "WikiText-2 test, stride 512") == []


def test_fine_tuned_figures_are_of_the_validation_split():
    fine_tuned = {**result(context_length=512, stride=512)}
    fine_tuned |= {"words": 213_886, "bytes": 1_146_846, "tokens": 237_532}
    studies = published.compare(fine_tuned, "gpt2", TUNED)
    assert [bool(study["differences"]) for study in studies] == [True, False, True]
    assert studies[1]["figures"] == {"loss": 2.94}


@pytest.mark.parametrize(
    ("step", "source", "origin"),
    [
        (15, "gpt2", "fine-tuned on 2 x 117 words"),  # 4 of 30 records a step
        (3, "gpt2", "fine-tuned on 0.4 x 117 words"),
        (15, "", "from random weights"),
    ],
)
def test_weights_are_named_by_the_records_that_they_have_seen(
    dataset, step, source, origin
):
    """Not by the records that the whole run was to see."""
    record = folders.Record(
        format_version=folders.FORMAT_VERSION,
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


def test_only_names_of_published_checkpoints_are_known(tmp_path, monkeypatch):
    for checkpoint, name in (
        ("gpt2", "gpt2"),
        ("openai-community/gpt2-xl", "gpt2-xl"),
        ("distilbert/distilgpt2", "distilgpt2"),
        ("somebody/gpt2", ""),
        (str(tmp_path), ""),
        ("", ""),
    ):
        assert pretrained.published_name(checkpoint) == name
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()  # a folder, which `transformers` prefers to the hub
    assert pretrained.published_name("gpt2") == ""
