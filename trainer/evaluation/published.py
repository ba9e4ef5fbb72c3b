"""Compares a result of `trainer.evaluate` with published ones, of `published.json`.

Two results compare when the same weights scored the same text, cut in the same way.
What a source says of its text is checked: log(word perplexity) / log(token perplexity)
is its number of tokens per word.
"""

import dataclasses
import functools
import importlib.resources
import json
import math
from collections.abc import Iterator
from typing import Any

# Relative; two detokenizers do not agree on every character.
_TOKENS_PER_WORD_TOLERANCE = 0.005


@dataclasses.dataclass(frozen=True)
class Study:
    """What one source measured in one way.

    Attributes:
      name: for people.
      source: a repository or page.
      text: the split that was scored: `name`, and counts of it, by names of a result:
        `words` and UTF-8 `bytes` of the original, or `examples` of a benchmark.
      protocol: how it was scored, by names of a result's protocol.
      weights: that were scored; see `pretrained.Pretrained.origin`.
      figures: checkpoint name -> name of a result's figure -> value.
    """

    name: str
    source: str
    text: dict[str, Any]
    protocol: dict[str, Any]
    weights: str
    figures: dict[str, dict[str, float]]


@functools.cache
def studies() -> tuple[Study, ...]:
    """Returns all published studies."""
    text = importlib.resources.files("trainer.evaluation") / "published.json"
    return tuple(Study(**values) for values in json.loads(text.read_text("utf-8")))


def compare(
    result: dict[str, Any], checkpoint: str, weights: str
) -> list[dict[str, Any]]:
    """Returns the published figures of a checkpoint on a text of as many words.

    Of a benchmark, those of the same one.

    Args:
      result: of `trainer.evaluate`.
      checkpoint: name of the published checkpoint that the weights started from, such
        as "gpt2"; empty, where there is none: nothing is compared.
      weights: where the weights are from, see `pretrained.Pretrained.origin`.

    Returns:
      {"study", "figures", "differences"} of each study; the results compare where
      there are no differences.
    """
    return [
        {
            "study": f"{study.name} ({study.source})",
            "figures": study.figures[checkpoint],
            "differences": list(_differences(study, result, weights, checkpoint)),
        }
        for study in studies()
        if _is_of(study, result) and checkpoint in study.figures
    ]


def _is_of(study: Study, result: dict[str, Any]) -> bool:
    benchmark = study.protocol.get("benchmark")
    if benchmark != result["protocol"].get("benchmark"):
        return False
    return bool(benchmark) or result["words"] == study.text["words"]


def _differences(
    study: Study, result: dict[str, Any], weights: str, checkpoint: str
) -> Iterator[str]:
    for unit in ("bytes", "examples"):
        count = study.text.get(unit, result.get(unit))
        if result.get(unit) != count:
            yield (
                f"it is of {study.text['name']}, {count:,} {unit}: this text has "
                f"{result[unit]:,}"
            )
    theirs, ours = (
        {"attention": "causal", **protocol}
        for protocol in (study.protocol, result["protocol"])
    )
    for name, value in theirs.items():
        if ours[name] != value:
            yield f"{name} {value} there, {ours[name]} here"
    if weights != study.weights:
        yield f"weights {study.weights} there, {weights} here"
    figures = study.figures[checkpoint]
    if {"word_perplexity", "token_perplexity"} <= figures.keys():
        per_word = math.log(figures["word_perplexity"])
        per_word /= math.log(figures["token_perplexity"])
        tokens_per_word = result["tokens"] / result["words"]
        if abs(per_word / tokens_per_word - 1) > _TOKENS_PER_WORD_TOLERANCE:
            yield f"{per_word:.3f} tokens a word there, {tokens_per_word:.3f} here"
