"""A run as its folder has it, and its curves, alone or beside others'."""

import dataclasses
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tfrecords.manifest import Manifest
from trainer.chart import Series, Style, line_chart
from trainer.markup import (
    Html,
    details,
    join,
    note,
    section,
    short,
    tag,
)


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run's folder holds; what is not there is empty.

    Attributes:
      name: for people; no other run of the page has it.
      workdir: the folder.
      record: `run.json`.
      metrics, samples, events: the lines of these files.
      evaluations, plans: the files of these folders.
      manifest: of the dataset.
    """

    name: str
    workdir: str
    record: dict[str, Any]
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    events: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    plans: list[dict[str, Any]]
    manifest: Manifest | None

    def points(self, name: str) -> list[tuple[float, float]]:
        """Returns (step, value) of all lines that have a finite one."""
        found = [
            (line["step"], line[name])
            for line in self.metrics
            if isinstance(line.get(name), (int, float)) and math.isfinite(line[name])
        ]
        return sorted(found, key=lambda point: point[0])

    @property
    def last_step(self) -> int:
        return max((line["step"] for line in self.metrics), default=0)

    @property
    def input(self) -> str:
        """What was preprocessed: the config's, or else the files of the manifest."""
        given = self.config.get("data.input")
        files = self.manifest.config.get("input", []) if self.manifest else []
        return given or ",".join(str(file[0]) for file in files)

    @property
    def config(self) -> dict[str, Any]:
        """The fields by their full names, as `schema.flatten` names them."""
        return {
            f"{concern}.{field}": value
            for concern, fields in self.record.get("config", {}).items()
            for field, value in fields.items()
        }


def each(
    runs: Sequence[Run], make: Callable[[Run], Html | None], *, folded: bool = False
) -> list[Html]:
    """Returns what there is of each run, under its name where there are several."""
    parts = [(run.name, make(run)) for run in runs]
    if len(runs) == 1:
        return [part for _, part in parts if part]
    if folded:
        return [details(name, part) for name, part in parts if part]
    return [join([tag("h3", name), part]) for name, part in parts if part]


def gathered(remarks: Iterable[tuple[str, str]], num_runs: int) -> list[Html]:
    """Returns each remark once, after the names of those that it is about."""
    names: dict[str, list[str]] = {}
    for name, remark in remarks:
        names.setdefault(remark, []).append(name)
    found = []
    for remark, about in names.items():
        named = "All runs" if len(about) == num_runs else ", ".join(about)
        found.append(note(remark if num_runs == 1 else f"{named}: {remark}"))
    return found


def key_of(index: int, name: str) -> Html:
    """Returns a run's name beside the colour that it has in all charts."""
    return tag("span", name, class_=f"key {_colour(index)}")


def _colour(index: int) -> str:
    dashed = " dashed" if index // _NUM_COLOURS % 2 else ""
    return f"c{index % _NUM_COLOURS}{dashed}"


_NUM_COLOURS = 6
_LONGEST_LABEL = 16  # of a line


@dataclasses.dataclass(frozen=True)
class _Metric:
    """A metric, the title and unit of its chart, and how it is drawn."""

    name: str
    title: str
    unit: str
    divisor: float = 1
    from_zero: bool = False


_METRICS = (
    _Metric("loss", "Training loss", "nats per token"),
    _Metric("validation_loss", "Validation loss", "nats per token"),
    _Metric("validation_perplexity", "Validation perplexity", "per token"),
    _Metric("learning_rate", "Learning rate", "", from_zero=True),
    _Metric("tokens_per_second", "Throughput", "tokens per second", from_zero=True),
    _Metric("mfu", "Model FLOPs utilisation", "% of the peak", 0.01, from_zero=True),
    _Metric("hbm_bytes_in_use", "HBM in use", "GiB", 2**30, from_zero=True),
    _Metric("gradient_norm", "Gradient norm", "before clipping"),
    _Metric("update_norm", "Update norm", "of all weights"),
)


def curves(runs: Sequence[Run]) -> Html:
    """Charts of all metrics; of several runs, each with one line a run."""
    if not any(run.metrics for run in runs):
        return section("Curves", note("No metrics yet: `trainer.train` writes them."))
    sizes = [run.record.get("tokens_per_step") for run in runs]
    by_tokens = len(set(sizes)) > 1 and None not in sizes
    factors = [size or 1 if by_tokens else 1 for size in sizes]
    last = [run.last_step * f for run, f in zip(runs, factors, strict=True)]
    num_buckets = 250 if len(runs) <= 3 else 120
    x_label = "tokens" if by_tokens else "step"
    style = Style(x_label, max(last), num_buckets=num_buckets)
    metrics = _METRICS if len(runs) > 1 else _METRICS[2:]
    charts = [_chart(runs, factors, metric, style) for metric in metrics]
    if len(runs) == 1:  # both losses in one
        charts.insert(0, _loss_chart(runs[0], style))
    remarks = [(run.name, remark) for run in runs for remark in _remarks(run)]
    notes = gathered(remarks, len(runs))
    if by_tokens:
        notes.append(note("Steps are of different sizes, so the x axis counts tokens."))
    if max(len(run.metrics) for run in runs) > 2 * num_buckets:
        line = f"Of a long run, a line is the median of each of {num_buckets} intervals"
        notes.append(note(f"{line}, a band its lowest to its highest."))
    if len(runs) > 1:
        legend = [key_of(index, run.name) for index, run in enumerate(runs)]
        notes.append(tag("p", legend, class_="legend"))
    return section("Curves", notes, tag("div", charts, class_="charts"))


def _loss_chart(run: Run, style: Style) -> Html | None:
    validation, best = run.points("validation_loss"), ""
    if validation:
        step, loss = min(validation, key=lambda point: point[1])
        best = f"Ring: lowest validation loss, {short(loss)} at step {step:,}."
    lines = [
        Series("training", run.points("loss"), "faint"),
        Series("validation", validation, "c0", dotted=True),
    ]
    style = dataclasses.replace(style, unit=_METRICS[0].unit, large=True, names=True)
    return line_chart("Loss", lines, dataclasses.replace(style, note=best))


def _chart(
    runs: Sequence[Run],
    factors: Sequence[float],
    metric: _Metric,
    style: Style,
) -> Html | None:
    """One metric of all runs, whose steps count as much as their factors say."""
    several, dotted = len(runs) > 1, metric.name.startswith("validation")
    labels = brief([run.name for run in runs]) if several else [""]
    lines = []
    for index, (run, factor) in enumerate(zip(runs, factors, strict=True)):
        found = run.points(metric.name)
        points = [(x * factor, y / metric.divisor) for x, y in found]
        lines.append(Series(labels[index], points, _colour(index), dotted))
    median = ""
    if not several and metric.from_zero and metric.name != "learning_rate":
        values = [y for _, y in lines[0].points] or [0.0]
        median = f"Median: {short(statistics.median(values))}."
    style = dataclasses.replace(
        style,
        unit=metric.unit,
        from_zero=metric.from_zero,
        note=median,
        names=several,
        values=not several,
    )
    return line_chart(metric.title, lines, style)


def brief(names: Sequence[str]) -> list[str]:
    """Returns short names that still tell the runs apart."""
    first, last = min(names), max(names)
    pairs = enumerate(zip(first, last, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(len(first), len(last)))
    shared = re.sub(r"[^-_./]*$", "", first[:same])
    found = [name.removeprefix(shared) or name for name in names]
    cut = [name[: _LONGEST_LABEL - 1] + "…" for name in found]
    found = [
        n if len(n) <= _LONGEST_LABEL else c for n, c in zip(found, cut, strict=True)
    ]
    return (
        found
        if len(set(found)) == len(found)
        else [f"run {i}" for i, _ in enumerate(found, 1)]
    )


def _remarks(run: Run) -> list[str]:
    """Returns what the curves do not show."""
    found = []
    skipped = run.points("skipped_updates")
    if skipped and skipped[-1][1]:
        count = f"{skipped[-1][1]:,.0f} updates were skipped"
        found.append(f"{count}, whose loss or gradient was no finite number.")
    by_heart = [step for step, level in run.points("memorisation") if level]
    if by_heart:
        found.append(
            f"From step {by_heart[0]:,} on the model learns the training text by "
            "heart: its validation loss rises while its training loss is very low."
        )
    return found
