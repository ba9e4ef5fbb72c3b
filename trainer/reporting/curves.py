"""The curves of runs, alone or beside others'."""

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Sequence

from trainer.reporting.charts import NUM_COLOURS, NUM_INTERVALS, Line, line_chart
from trainer.reporting.markup import Html, details, join, note, section, short, tag
from trainer.reporting.runs import Run


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
    dashed = " dashed" if index // NUM_COLOURS % 2 else ""
    return f"c{index % NUM_COLOURS}{dashed}"


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
    x_label = "tokens" if by_tokens else "step"
    charts = [
        _chart(runs, factors, metric, x_label)
        for metric in (_METRICS if len(runs) > 1 else _METRICS[2:])
    ]
    if len(runs) == 1:  # both losses in one
        charts.insert(0, _loss_chart(runs[0]))
    remarks = [(run.name, remark) for run in runs for remark in _remarks(run)]
    notes = gathered(remarks, len(runs))
    if by_tokens:
        notes.append(note("Steps are of different sizes, so the x axis counts tokens."))
    if max(len(run.metrics) for run in runs) > 2 * NUM_INTERVALS:
        line = f"Of a long run, a line is the median of each of {NUM_INTERVALS} parts"
        notes.append(note(f"{line}, a band its lowest to its highest."))
    if len(runs) > 1:
        legend = [key_of(index, run.name) for index, run in enumerate(runs)]
        notes.append(tag("p", legend, class_="legend"))
    return section("Curves", notes, tag("div", charts, class_="charts"))


def _loss_chart(run: Run) -> Html | None:
    validation, best = run.points("validation_loss"), ""
    if validation:
        step, loss = min(validation, key=lambda point: point[1])
        best = f"Lowest validation loss: {short(loss)} at step {step:,}."
    lines = [
        Line("training", run.points("loss"), None),
        Line("validation", validation, dotted=True),
    ]
    return line_chart(
        "Loss", lines, x_label="step", unit=_METRICS[0].unit, note=best, legend=True
    )


def _chart(
    runs: Sequence[Run], factors: Sequence[float], metric: _Metric, x_label: str
) -> Html | None:
    """One metric of all runs, whose steps count as much as their factors say."""
    lines = []
    for index, (run, factor) in enumerate(zip(runs, factors, strict=True)):
        found = run.points(metric.name)
        points = [(x * factor, y / metric.divisor) for x, y in found]
        dotted = metric.name.startswith("validation")
        lines.append(Line(run.name if len(runs) > 1 else "", points, index, dotted))
    values = [y for _, y in lines[0].points]
    said = ""
    if len(runs) == 1 and values:
        typical = metric.from_zero and metric.name != "learning_rate"
        said = f"Last: {short(values[-1])}."
        said += f" Median: {short(statistics.median(values))}." if typical else ""
    return line_chart(
        metric.title,
        lines,
        x_label=x_label,
        unit=metric.unit,
        note=said,
        from_zero=metric.from_zero,
    )


def _remarks(run: Run) -> list[str]:
    """Returns what the curves do not show."""
    found = []
    skipped = run.points("skipped_updates")
    if skipped and skipped[-1][1]:
        count = f"{skipped[-1][1]:,.0f} updates were skipped"
        found.append(f"{count}, whose loss or gradient was no finite number.")
    by_heart = [step for step, level in run.points("memorization") if level]
    if by_heart:
        found.append(
            f"From step {by_heart[0]:,} on the model learns the training text by "
            "heart: its validation loss rises while its training loss is very low."
        )
    return found
