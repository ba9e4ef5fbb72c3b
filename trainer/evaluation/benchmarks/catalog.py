"""The standard benchmarks: how each makes rows of its examples, and figures of scores.

Each figure is computed as where its published values come from. "The harness" is
EleutherAI's lm-evaluation-harness (`lm-eval` 0.4), tasks lambada_openai, hellaswag,
wikitext and blimp.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from configs.errors import DataError, UserError
from trainer.evaluation.benchmarks import example_files
from trainer.evaluation.benchmarks.example_files import Example
from trainer.evaluation.benchmarks.rows import Row, RowMaker, Score

Figures = dict[str, float | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """How a model is measured by the examples of a benchmark.

    Attributes:
      fields: of an example in the published file, with their types.
      rows: (example, RowMaker) -> what is scored of it.
      figures: (examples, the scores of each one's rows) -> figures by name.
      tfds: `NAME/SPLIT`, where TFDS has it.
      tfds_fields: name there -> name in the published file.
      is_pages: whether the file can also be WikiText's own text.
      describe: examples -> what the protocol says of them.
    """

    fields: Mapping[str, type | tuple[type, ...]]
    rows: Callable[[Example, RowMaker], list[Row]]
    figures: Callable[[Sequence[Example], Sequence[Sequence[Score]]], Figures]
    tfds: str = ""
    tfds_fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    is_pages: bool = False
    describe: Callable[[Sequence[Example]], dict[str, Any]] = lambda _: {}


def _lambada_rows(example: Example, make: RowMaker) -> list[Row]:
    words = example["text"].split(" ")
    return [make.joint(" ".join(words[:-1]), f" {words[-1]}")]


def _lambada_figures(
    examples: Sequence[Example], scores: Sequence[Sequence[Score]]
) -> Figures:
    """Counts the last word as the harness does, and the last token as OpenAI does.

    Source: of the second, Radford et al. (2019), table 3; its counting is known from
    openai/gpt-2#131.
    """
    del examples
    words = [score for (score,) in scores]
    last = [score.log_likelihoods[-1] for score in words]
    return {
        "accuracy": _mean([score.is_likeliest.all() for score in words]),
        "perplexity": _exp(-_mean([score.total for score in words])),
        "last_token_accuracy": _mean([score.is_likeliest[-1] for score in words]),
        "last_token_perplexity": _exp(-_mean(last)),
    }


def _lambada_edition(examples: Sequence[Example]) -> dict[str, Any]:
    cased = any(example["text"] != example["text"].lower() for example in examples)
    return {"edition": "OpenAI's" if cased else "the original, in lower case"}


def _hellaswag_rows(example: Example, make: RowMaker) -> list[Row]:
    """Returns the rows of build-nanogpt's counting, then those of the harness.

    TFDS has the context as one text only: the harness's cannot be made of it.
    """
    _label(example)  # refuses a split without labels before it is scored
    rows = [make.separate(example["ctx"], f" {text}") for text in example["endings"]]
    if "ctx_a" in example:
        context = f"{example['ctx_a']} {example['ctx_b'].capitalize()}"
        query = _plain_wikihow(f"{example['activity_label']}: {context}")
        endings = map(_plain_wikihow, example["endings"])
        rows += [make.joint(query, f" {ending}") for ending in endings]
    return rows


def _hellaswag_figures(
    examples: Sequence[Example], scores: Sequence[Sequence[Score]]
) -> Figures:
    """Takes the likeliest ending, by its sum or by its mean.

    Source: of the means over tokens, karpathy/build-nanogpt `hellaswag.py`; the
    harness's are over characters.
    """
    hits: dict[str, list[bool]] = {}
    for example, rows in zip(examples, scores, strict=True):
        endings, label = example["endings"], _label(example)
        totals = np.array([score.total for score in rows])
        by_completion, by_harness = np.split(totals, [len(endings)])
        num_tokens = [len(row.log_likelihoods) for row in rows[: len(endings)]]
        measures = {
            "completion_accuracy": by_completion,
            "normalized_completion_accuracy": by_completion / num_tokens,
        }
        if len(by_harness):
            num_characters = [len(_plain_wikihow(ending)) for ending in endings]
            measures["accuracy"] = by_harness
            measures["normalized_accuracy"] = by_harness / num_characters
        for name, values in measures.items():
            hits.setdefault(name, []).append(bool(np.argmax(values) == label))
    return {name: _mean(values) for name, values in sorted(hits.items())}


def _label(example: Example) -> int:
    label = str(example["label"])
    if label.isdecimal() and int(label) < len(example["endings"]):
        return int(label)
    raise DataError(
        "`label` of a HellaSwag example must be the number of its right ending. "
        f"Received: {label!r}, of {len(example['endings'])} endings. Use a split that "
        "has labels, such as the validation split."
    )


def _plain_wikihow(text: str) -> str:
    """Removes the marks of WikiHow's titles and steps, as the harness does."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


# How the harness undoes WikiText's tokenization, in this order. Its figures are of the
# result, oddities included: "N" as a word becomes 1.
_HARNESS_DETOKENIZER: list[tuple[str | re.Pattern[str], str]] = [
    ("s '", "s'"),
    *((f" @{mark}@ ", mark) for mark in "-,."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
    *(
        (re.compile(rf"{begin}\s*([^{end}]*?)\s*{end}"), rf"{left}\1{right}")
        for begin, end, left, right in (
            (r"\(", r"\)", "(", ")"),
            (r"\[", r"\]", "[", "]"),
            ("{", "}", "{", "}"),
            ('"', '"', '"', '"'),
            ("'", "'", "'", "'"),
        )
    ),
    *(("= " * n + "=", "=" * (n + 1)) for n in (3, 2, 1)),
    (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
    *((" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s")),
]


def _harness_detokenize(page: str) -> str:
    for pattern, replacement in _HARNESS_DETOKENIZER:
        if isinstance(pattern, str):
            page = page.replace(pattern, replacement)
        else:
            page = pattern.sub(replacement, page)
    return page


def _wikitext_rows(example: Example, make: RowMaker) -> list[Row]:
    return make.rolling(_harness_detokenize(example["page"]))


def _wikitext_figures(
    examples: Sequence[Example], scores: Sequence[Sequence[Score]]
) -> Figures:
    """Divides by words and bytes of the text as published, not as detokenized."""
    words = sum(len(re.split(r"\s+", example["page"])) for example in examples)
    num_bytes = sum(len(example["page"].encode()) for example in examples)
    nats = -sum(score.total for rows in scores for score in rows)
    return {
        "words": words,
        "bytes": num_bytes,
        "word_perplexity": _exp(nats / words),
        "byte_perplexity": _exp(nats / num_bytes),
        "bits_per_byte": nats / num_bytes / math.log(2),
    }


def _blimp_rows(example: Example, make: RowMaker) -> list[Row]:
    names = ("sentence_good", "sentence_bad")
    return [make.joint("", f" {example[name]}") for name in names]


def _blimp_figures(
    examples: Sequence[Example], scores: Sequence[Sequence[Score]]
) -> Figures:
    del examples
    return {"accuracy": _mean([good.total >= bad.total for good, bad in scores])}


def _mean(values: Sequence[Any]) -> float:
    return float(np.mean(values, dtype=np.float64))


def _exp(nats: float) -> float | None:
    """Returns None of what does not fit into a float64."""
    return math.exp(nats) if nats < 700 else None


BENCHMARKS = {
    "lambada": Benchmark(
        fields={"text": str},
        rows=_lambada_rows,
        figures=_lambada_figures,
        tfds="lambada/test",
        tfds_fields={"passage": "text"},
        describe=_lambada_edition,
    ),
    "hellaswag": Benchmark(
        fields={
            **dict.fromkeys(("activity_label", "ctx", "ctx_a", "ctx_b"), str),
            "endings": list,
            "label": (int, str),
        },
        rows=_hellaswag_rows,
        figures=_hellaswag_figures,
        tfds="hellaswag/validation",
        tfds_fields={"context": "ctx", "endings": "endings", "label": "label"},
    ),
    "wikitext": Benchmark(
        fields={"page": str},
        rows=_wikitext_rows,
        figures=_wikitext_figures,
        is_pages=True,
    ),
    "blimp": Benchmark(
        fields={"sentence_good": str, "sentence_bad": str},
        rows=_blimp_rows,
        figures=_blimp_figures,
    ),
}


def load(name: str, path: str) -> list[Example]:
    """Returns the examples of a benchmark, of a file or, without one, of TFDS.

    Raises:
      UserError: they cannot be read.
      DataError: they are not examples of this benchmark.
    """
    benchmark = BENCHMARKS[name]
    if path:
        return example_files.load(path, benchmark.fields, is_pages=benchmark.is_pages)
    if not benchmark.tfds:
        raise UserError(
            f"`--benchmark={name}` needs `--benchmark_file`: TFDS does not have it. "
            "docs/evaluation.md says which file."
        )
    return example_files.load_tfds(benchmark.tfds, benchmark.tfds_fields)
