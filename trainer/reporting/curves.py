"""The charts of a report: all metrics of one run, or of several runs together."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from trainer.reporting.charts import NUM_INTERVALS, Chart, Line
from trainer.reporting.numbers import label, short
from trainer.reporting.runs import Run


@dataclasses.dataclass(frozen=True)
class _Metric:
    """A metric's name in `metrics.jsonl`, and how its chart looks.

    A chart `from_zero` starts its y axis at 0. The values are divided by `divisor`.
    """

    name: str
    title: str
    unit: str = ""
    divisor: float = 1
    from_zero: bool = False


_METRICS = (
    _Metric("loss", "Training loss", "nats per token"),
    _Metric("validation_loss", "Validation loss", "nats per token"),
    _Metric("validation_perplexity", "Validation perplexity", "per token"),
    _Metric("learning_rate", "Learning rate", from_zero=True),
    _Metric("tokens_per_second", "Throughput", "tokens per second", from_zero=True),
    _Metric("mfu", "Model FLOPs utilization", "% of the peak", 0.01, from_zero=True),
    _Metric("hbm_bytes_in_use", "HBM in use", "GiB", 2**30, from_zero=True),
    _Metric("gradient_norm", "Gradient norm", "before clipping"),
    _Metric("update_norm", "Update norm", "of all weights"),
)
_NOT_DRAWN = {
    *("step", "tokens", "skipped_updates", "skipped_in_a_row"),
    *("memorization", "too_good"),
}


def charts(runs: Sequence[Run]) -> list[Chart]:
    """Returns a chart of each metric; a task's own are titled by their names.

    Where the runs' steps are of different sizes, x counts tokens.
    """
    known = {metric.name for metric in _METRICS}
    names = {name for run in runs for line in run.metrics for name in line}
    others = sorted(names - known - _NOT_DRAWN)
    metrics = [*_METRICS, *(_Metric(name, label(name)) for name in others)]
    drawn = [_chart(runs, metric) for metric in metrics]
    if len(runs) == 1:
        drawn[:2] = [_loss_chart(runs[0])]
    return [chart for chart in drawn if not chart.is_empty]


def _counts_tokens(runs: Sequence[Run]) -> bool:
    """Returns whether the x axis counts tokens instead of steps."""
    sizes = [run.record.get("tokens_per_step") for run in runs]
    return len(set(sizes)) > 1 and None not in sizes


def _loss_chart(run: Run) -> Chart:
    validation, note = run.points("validation_loss"), ""
    if validation:
        step, loss = min(validation, key=lambda point: point[1])
        note = f"Lowest validation loss: {short(loss)} at step {step:,}."
    lines = [
        Line("training", run.points("loss"), color=None),
        Line("validation", validation, has_dots=True),
    ]
    is_classifier = run.config.get("training.task") == "classification"
    unit = f"nats per {'text' if is_classifier else 'token'}"
    return Chart("Loss", lines, "step", unit=unit, note=note, has_legend=True)


def _chart(runs: Sequence[Run], metric: _Metric) -> Chart:
    """Returns a chart of one metric, with a line for each run."""
    by_tokens = _counts_tokens(runs)
    lines = []
    for index, run in enumerate(runs):
        factor = run.record["tokens_per_step"] if by_tokens else 1
        points = [(x * factor, y / metric.divisor) for x, y in run.points(metric.name)]
        has_dots = metric.name.startswith("validation_")
        lines.append(Line(run.name if len(runs) > 1 else "", points, index, has_dots))
    note = ""
    if len(runs) == 1 and lines[0].points:
        note = f"Last: {short(lines[0].points[-1][1])}."
    return Chart(
        metric.title,
        lines,
        x_label="tokens" if by_tokens else "step",
        unit=metric.unit,
        note=note,
        from_zero=metric.from_zero,
    )


def remarks(runs: Sequence[Run]) -> Iterator[str]:
    """Yields what the charts do not show."""
    for run in runs:
        name = f"{run.name}: " if len(runs) > 1 else ""
        skipped = run.points("skipped_updates")
        if skipped and skipped[-1][1]:
            count = f"{name}{skipped[-1][1]:,.0f} updates were skipped"
            yield f"{count}, because their loss or gradient was not finite."
        overfitted = [step for step, level in run.points("memorization") if level]
        if overfitted:
            yield (
                f"{name}From step {overfitted[0]:,} on the model memorizes the text: "
                "its validation loss rises while its training loss is very low."
            )
        too_good = [step for step, level in run.points("too_good") if level]
        if too_good:
            yield (
                f"{name}From step {too_good[0]:,} on the validation loss is too good "
                "to be true: the model may see what it is to predict."
            )
    if _counts_tokens(runs):
        yield "Steps are of different sizes, so the x axis counts tokens."
    if max(len(run.metrics) for run in runs) > 2 * NUM_INTERVALS:
        yield (
            f"Of a long run, a line is the median of each of {NUM_INTERVALS} "
            "parts, a band its lowest to its highest value."
        )


def frontier(plan: dict[str, Any]) -> Chart:
    """Returns the variants that a tuned plan compared: memory against speed."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for candidate in plan["candidates"]:
        speed = sum(candidate["tokens_per_second_estimate"]) / 2
        point = (candidate["peak_bytes"] / 2**30, speed)
        lines.setdefault(candidate["remat"], []).append(point)
    return Chart(
        f"Memory and speed on a {plan['tpu_type']}",
        [
            Line(f"remat {remat}", sorted(points), index, has_dots=True)
            for index, (remat, points) in enumerate(lines.items())
        ],
        x_label="GiB of a replica's memory",
        unit="tokens per second, estimated",
        from_zero=True,
        has_legend=True,
    )
