"""The page of a report: its head, and what sums up a run."""

import importlib.resources
import math
import statistics
from collections.abc import Sequence
from pathlib import PurePosixPath

from trainer.reporting import curves, outcome, provenance
from trainer.reporting.markup import Figure, Html, join, note, short, table, tag
from trainer.reporting.runs import Run

SECTIONS = (
    curves.curves,
    outcome.evaluations,
    outcome.samples,
    outcome.memory,
    provenance.data,
    provenance.configuration,
    provenance.events,
)


def page(runs: Sequence[Run]) -> str:
    """Returns the whole page."""
    title = ", ".join(run.name for run in runs)
    css = importlib.resources.files("trainer.reporting") / "report.css"
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # Whatever a text may hold, nothing is loaded or run.
        tag(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; style-src 'unsafe-inline'; img-src data:",
        ),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{title}: training report"),
        tag("style", Html(css.read_text("utf-8"))),
    ]
    heading = _one(runs[0]) if len(runs) == 1 else _several(runs)
    body = [
        tag("header", heading, [note(sentence) for sentence in _cautions(runs)]),
        tag("main", [make(runs) for make in SECTIONS]),
    ]
    document = tag("html", tag("head", head), tag("body", body), lang="en")
    return f"<!DOCTYPE html>\n{document}\n"


def _one(run: Run) -> Html:
    figures = [
        tag("div", tag("dt", name), tag("dd", value), tag("dd", more, class_="more"))
        for name, (value, more) in _figures(run).items()
    ]
    return join(
        [
            tag("h1", run.name),
            tag("p", _sentence(run), class_="lead"),
            tag("dl", figures, class_="figures"),
        ]
    )


def _several(runs: Sequence[Run]) -> Html:
    found = [_figures(run) for run in runs]
    columns = list(dict.fromkeys(name for figures in found for name in figures))
    rows = []
    for index, (run, figures) in enumerate(zip(runs, found, strict=True)):
        values = [figures.get(name, ("–", ""))[0] for name in columns]
        rows.append([curves.key_of(index, run.name), *map(Figure, values)])
    sentences = [(run.name, _sentence(run)) for run in runs]
    return join(
        [
            tag("h1", f"{len(runs)} runs"),
            table(["Run", *columns], rows),
            curves.gathered(sentences, len(runs)),
        ]
    )


def _sentence(run: Run) -> str:
    """What was trained, on what, and where."""
    shape, config = run.record.get("model_config", {}), run.config
    names = {"n_layer": "{} layers", "n_head": "{} heads", "n_embd": "width {}"}
    sizes = [
        words.format(shape[name]) for name, words in names.items() if name in shape
    ]
    start = config.get("model.initial_checkpoint") or "random weights"
    first, *others = (run.input or "its dataset").split(",")
    source = PurePosixPath(first).name
    source += f" and {len(others)} more" if others else ""
    if run.manifest and "train" in run.manifest.splits:
        source += f" ({run.manifest.split('train').tokens:,} tokens)"
    return (
        f"GPT-2 of {', '.join(sizes) or 'unknown size'}, from {start}, trained on "
        f"{source}, on {run.record.get('hardware') or 'unknown hardware'}."
    )


def _figures(run: Run) -> dict[str, tuple[str, str]]:
    """Returns the figures that sum a run up, each with what else is to say of it."""
    found: dict[str, tuple[str, str]] = {}
    validation = run.points("validation_loss")
    if validation:
        step, best = min(validation, key=lambda point: point[1])
        last, final = validation[-1]
        end, end_perplexity = f"at step {step:,}, the last", ""
        if step < last:
            end = f"at step {step:,}; final {final:.4f}"
            end_perplexity = f"final {_perplexity(final)}"
        found["Best validation loss"] = f"{best:.4f}", end
        found["Best perplexity"] = _perplexity(best), end_perplexity
    training = run.points("loss")
    if training:
        step, loss = training[-1]
        found["Training loss"] = f"{loss:.4f}", f"of step {step:,}"
    if run.metrics:
        num_steps = run.record.get("num_steps")
        found["Steps"] = f"{run.last_step:,}", f"of {num_steps:,}" if num_steps else ""
    tokens = run.points("tokens")
    if tokens:
        size = run.record.get("tokens_per_step")
        found["Tokens seen"] = (
            f"{tokens[-1][1]:,.0f}",
            f"{size:,} a step" if size else "",
        )
    speeds = [speed for _, speed in run.points("tokens_per_second")]
    if speeds:
        found["Tokens per second"] = short(statistics.median(speeds)), "median"
    if run.record.get("parameter_count"):
        found["Parameters"] = f"{run.record['parameter_count']:,}", ""
    return found


def _perplexity(loss: float) -> str:
    return short(math.exp(min(loss, 700.0)))  # beyond, it is no finite number


def _cautions(runs: Sequence[Run]) -> list[str]:
    """Says where the losses of the runs are not of the same thing."""
    known = [run.manifest for run in runs if run.manifest]
    if len({manifest.tokenizer_fingerprint for manifest in known}) > 1:
        return ["The runs have different tokenizers: their losses do not compare."]
    if len({manifest.fingerprint for manifest in known}) > 1:
        return [
            "The runs' datasets differ: their losses compare only where the validation "
            "texts are the same."
        ]
    return []
