"""Line charts for a web page: SVG by matplotlib, in the colours of `report.css`."""

import dataclasses
import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.reporting.markup import Html, short, tag

Point = tuple[float, float]
NUM_INTERVALS = 250  # to which a line of more than twice as many points is thinned
NUM_COLOURS = 6
_LARGEST_LINEAR_RATIO = 20.0
_SIZE = (5.6, 2.6)  # inches of 72 CSS pixels, which the page stretches
_STEPS = (1, 2, 5, 10)  # between the values at an axis, times a power of ten
_COLOURS = {
    **{f"#abcd{index:02x}": f"var(--c{index})" for index in range(NUM_COLOURS)},
    "#abcdf0": "var(--faint)",
    "#abcdf1": "var(--soft)",
    "#abcdf2": "var(--hair)",
}
_FAINT, _SOFT, _HAIR = list(_COLOURS)[NUM_COLOURS:]
_SETTINGS: Any = {
    "axes.edgecolor": _SOFT,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": _SOFT,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10.5,
    "grid.color": _HAIR,
    "legend.frameon": False,
    "legend.labelcolor": "linecolor",
    "svg.fonttype": "none",  # texts stay texts
    "svg.hashsalt": "gpt2-tpu",  # the same picture has the same bytes
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "ytick.left": False,
}


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
      label: its name; may be empty.
      points: (x, y), by x; all finite.
      index: of its colour, see `NUM_COLOURS`; None: in the background.
      dotted: each point has a dot.
    """

    label: str
    points: Sequence[Point]
    index: int | None = 0
    dotted: bool = False


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    unit: str = "",
    note: str = "",
    from_zero: bool = False,
    legend: bool = False,
) -> Html | None:
    """Returns a figure with all lines; None where no line has a point.

    Args:
      title: what is drawn.
      lines: the strongest last.
      x_label: what x is.
      unit: of y. Where the values differ by more than an order of magnitude, the axis
        is logarithmic.
      note: a sentence for what the picture does not say.
      from_zero: whether the y axis starts at 0, and is never logarithmic.
      legend: whether the lines' labels stand in the picture.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    ys = [y for line in lines for _, y in line.points]
    is_log = not from_zero and 0 < min(ys) * _LARGEST_LINEAR_RATIO < max(ys)
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        for line in lines:
            _draw(axes, line)
        axes.set_xlabel(x_label)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6, steps=_STEPS, integer=True))
        if is_log:
            axes.set_yscale("log")
            steps = (1, 2, 5) if max(ys) < 100 * min(ys) else (1,)
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=steps, numticks=6))
            axes.yaxis.set_minor_locator(ticker.NullLocator())
        else:
            axes.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=_STEPS))
        if from_zero:
            axes.set_ylim(bottom=0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ticker.FuncFormatter(_tick))
        if legend:
            axes.legend()
        picture = _svg(figure)
    return tag(
        "figure",
        tag(
            "figcaption",
            tag("b", title),
            f" {unit}{', logarithmic' if is_log else ''}",
            tag("small", note) if note else None,
        ),
        tag("div", picture, role="img", aria_label=f"{title}. {_in_words(lines)}"),
        class_="chart",
    )


def _draw(axes: Axes, line: Line) -> None:
    xs, ys, lows, highs = thin(line.points)
    index = line.index
    colour = _FAINT if index is None else list(_COLOURS)[index % NUM_COLOURS]
    axes.plot(
        xs,
        ys,
        color=colour,
        label=line.label,
        linestyle="--" if (index or 0) // NUM_COLOURS % 2 else "-",
        linewidth=1 if index is None else 1.75,
        marker="o" if line.dotted or len(xs) == 1 else None,
        markersize=4,
        clip_on=False,  # the first dot stands on the edge
    )
    if len(xs) < len(line.points):
        axes.fill_between(xs, lows, highs, color=colour, alpha=0.18, linewidth=0)


def thin(points: Sequence[Point]) -> np.ndarray:
    """Returns x, y, lowest and highest y, each of shape (number of intervals,).

    Of a line of more than 2 * NUM_INTERVALS points, x is the mean and y the median of
    each of NUM_INTERVALS intervals; of another, each point is one.
    """
    count = NUM_INTERVALS if len(points) > 2 * NUM_INTERVALS else len(points)
    intervals = np.array_split(np.array(points), count)
    found = [
        (xs.mean(), np.median(ys), ys.min(), ys.max())
        for xs, ys in (part.T for part in intervals)
    ]
    return np.array(found).T


def _tick(value: float, _: int | None = None) -> str:
    """Such as 0.0005, 500, 20k, 2.5M."""
    if abs(value) >= 1e4:
        return ticker.EngFormatter(sep="").format_eng(value)
    return f"{value:g}"


def _in_words(lines: Sequence[Line]) -> str:
    return " ".join(
        f"{line.label or 'It'} goes from {short(line.points[0][1])} at "
        f"{line.points[0][0]:,.0f} to {short(line.points[-1][1])} at "
        f"{line.points[-1][0]:,.0f}."
        for line in lines
    )


def _svg(figure: Figure) -> Html:
    """The picture as an element, whose colours the page's style gives."""
    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    # Names of its parts, which those of the page's next picture would be, too.
    text = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", text)
    for colour, variable in _COLOURS.items():
        text = text.replace(colour, variable)
    return Html(text)
