"""Perplexities that others published for GPT-2, and whether one's own compare.

Two figures compare when the same model saw the same text, cut in the same way. What
others say of their text is checked: log(word perplexity) / log(token perplexity) is
their number of tokens for each word.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from transformers import PretrainedConfig

_MODELS = {
    (6, 768): "distilgpt2",
    (12, 768): "gpt2",
    (24, 1024): "gpt2-medium",
    (36, 1280): "gpt2-large",
    (48, 1600): "gpt2-xl",
}
# Tokens for each word that may differ: detokenizers are not the same to the letter.
_TOLERANCE = 0.005


@dataclasses.dataclass(frozen=True)
class Text:
    """A split, known by the words and UTF-8 bytes of the original."""

    name: str
    words: int
    bytes: int


# WikiText-103 has the same articles in its test split.
_TEST = Text("the raw WikiText test split", 241_211, 1_290_590)
_JOINED = Text("the same, its lines joined by blank lines", 241_211, 1_296_370)
_VALIDATION = Text("the raw WikiText-2 validation split", 213_886, 1_146_846)


_AS_PUBLISHED = "as published"
_PACKED = {"mode": "packed", "detokenizer": "wikitext"}


@dataclasses.dataclass(frozen=True)
class Study:
    """What one source measured in one way.

    Attributes:
      name: for people.
      text: that was scored.
      protocol: how, in the names of a result's protocol.
      weights: that were scored; see `pretrained.Pretrained.origin`.
      figures: of each model, by the names of a result.
    """

    name: str
    text: Text
    protocol: dict[str, Any]
    weights: str
    figures: dict[str, dict[str, float]]


def _perplexities(*pairs: tuple[float, float]) -> dict[str, dict[str, float]]:
    return {
        model: {"token_perplexity": token, "word_perplexity": word}
        for model, (token, word) in zip(_MODELS.values(), pairs, strict=True)
    }


def _fine_tuned(context_length: int, *losses: float) -> Study:
    models = list(_MODELS.values())[1:]
    return Study(
        f"WikiText-2 validation, fine-tuned for an epoch, context {context_length} "
        "(bkkaggle/lm-training-research-project)",
        _VALIDATION,
        {**_PACKED, "context_length": context_length, "stride": context_length},
        "fine-tuned on 1 x 2,051,910 words",
        {model: {"loss": x} for model, x in zip(models, losses, strict=True)},
    )


_WHOLE = {**_PACKED, "context_length": 1024, "stride": 1024}
STUDIES = (
    Study(
        "WikiText-2 test, not fine-tuned (bkkaggle/lm-finetuning)",
        _TEST,
        _WHOLE,
        _AS_PUBLISHED,
        _perplexities(
            (31.27, 48.71),
            (23.15, 34.70),
            (18.24, 26.50),
            (16.00, 22.87),
            (14.78, 20.92),
        ),
    ),
    Study(
        "WikiText-103 test, not fine-tuned (bkkaggle/lm-finetuning)",
        _TEST,
        _WHOLE,
        _AS_PUBLISHED,
        _perplexities(
            (36.54, 51.63),
            (25.97, 35.51),
            (19.32, 25.68),
            (16.69, 21.88),
            (15.24, 19.80),
        ),
    ),
    *(
        Study(
            f"WikiText-2 test, stride {stride} (Hugging Face's documentation)",
            _JOINED,
            {
                "mode": "packed",
                "detokenizer": "none",
                "context_length": 1024,
                "stride": stride,
            },
            _AS_PUBLISHED,
            {"gpt2-large": {"token_perplexity": perplexity}},
        )
        for stride, perplexity in ((1024, 19.44), (512, 16.44))
    ),
    _fine_tuned(256, 3.03, 2.81, 2.74, 2.71),
    _fine_tuned(512, 2.94, 2.70, 2.59, 2.52),
    _fine_tuned(1024, 2.87, 2.63, 2.51, 2.51),
)


def compare(
    result: dict[str, Any], shape: PretrainedConfig, trained: str
) -> list[dict[str, Any]]:
    """Returns what was published of a model's size on a text of these words.

    Args:
      result: of `evaluate`.
      shape: of the model.
      trained: where its weights are from, see `pretrained.Pretrained.origin`.

    Returns:
      For each study {"study", "figures", "differences"}. Without a difference, it
      compares.
    """
    model = _MODELS.get((shape.n_layer, shape.n_embd), "")
    return [
        {
            "study": study.name,
            "figures": study.figures[model],
            "differences": list(_differences(study, result, trained, model)),
        }
        for study in STUDIES
        if result["words"] == study.text.words and model in study.figures
    ]


def _differences(
    study: Study, result: dict[str, Any], trained: str, model: str
) -> Iterator[str]:
    if result["bytes"] != study.text.bytes:
        yield (
            f"it is of {study.text.name}, {study.text.bytes:,} bytes: this text has "
            f"{result['bytes']:,}"
        )
    for name, value in study.protocol.items():
        if result["protocol"][name] != value:
            yield f"{name} {value} there, {result['protocol'][name]} here"
    if trained != study.weights:
        yield f"weights {study.weights} there, {trained} here"
    figures = study.figures[model]
    if "word_perplexity" in figures:
        theirs = math.log(figures["word_perplexity"])
        theirs /= math.log(figures["token_perplexity"])
        ours = result["tokens"] / result["words"]
        if abs(theirs / ours - 1) > _TOLERANCE:
            yield f"{theirs:.3f} tokens a word there, {ours:.3f} here"
