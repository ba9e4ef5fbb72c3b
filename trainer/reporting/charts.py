"""Line charts and matrices as SVG by matplotlib, in the colors of `report.css`."""

import dataclasses
import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from trainer.reporting.runs import Point

NUM_INTERVALS = 250  # a line of more than twice as many points is thinned to these
NUM_COLORS = 6
_LARGEST_LINEAR_RATIO = 20.0
_INCHES = (5.6, 2.6)  # of 72 CSS pixels; the page stretches them
_MAX_COUNTED_LABELS = 12
_STEPS = (1, 2, 5, 10)  # between ticks, times a power of ten
# matplotlib draws with placeholders, which the page's style sheet resolves.
_LINE_COLORS = [f"#abcd{index:02x}" for index in range(NUM_COLORS)]
_FAINT, _SOFT, _HAIR, _INK = "#abcdf0", "#abcdf1", "#abcdf2", "#abcdf3"
_VARIABLES = {
    **{color: f"var(--c{index})" for index, color in enumerate(_LINE_COLORS)},
    _FAINT: "var(--faint)",
    _SOFT: "var(--soft)",
    _HAIR: "var(--hair)",
    _INK: "var(--ink)",
}
# The same as in report.css.
_LIGHT = (
    "--faint: #656e79; --soft: #59626d; --hair: #d5dae0; --c0: #0067a8; --c1: #b84a00; "
    "--c2: #00745a; --c3: #a0407a; --c4: #7a6000; --c5: #5b5fc7; background: #ffffff"
)
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
    "svg.fonttype": "none",  # text stays text
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
      color: index of its color; None: a thin line in the background.
      has_dots: whether each point has a dot.
    """

    label: str
    points: Sequence[Point]
    color: int | None = 0
    has_dots: bool = False


@dataclasses.dataclass(frozen=True)
class Chart:
    """A line chart.

    The y axis is logarithmic where the values differ by more than an order of
    magnitude, unless it starts at 0.

    Attributes:
      title: what is drawn.
      lines: the last one is on top.
      x_label: what x is.
      unit: of y.
      note: a sentence for what the picture does not show.
      from_zero: whether the y axis starts at 0.
      has_legend: whether the lines' labels are in the picture.
    """

    title: str
    lines: Sequence[Line]
    x_label: str
    unit: str = ""
    note: str = ""
    from_zero: bool = False
    has_legend: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether no line has a point."""
        return not any(line.points for line in self.lines)

    @property
    def is_logarithmic(self) -> bool:
        """Whether the y axis is logarithmic."""
        low, high = self._range()
        return not self.from_zero and 0 < low * _LARGEST_LINEAR_RATIO < high

    def svg(self) -> Markup:
        """Returns the picture as an element for a page with other pictures."""
        with matplotlib.rc_context(_SETTINGS):
            figure = Figure(figsize=_INCHES, layout="constrained")
            axes = figure.subplots()
            for line in filter(lambda line: line.points, self.lines):
                _draw_line(axes, line)
            self._set_axes(axes)
            if self.has_legend:
                axes.legend()
            return _svg(figure)

    def svg_file(self) -> str:
        """Returns the picture as a file of its own, in the colors of a light page."""
        text = str(self.svg()).replace("<svg ", f'<svg style="{_LIGHT}" ', 1)
        return text.replace("</svg>", f"<title>{self.title}, {self.unit}</title></svg>")

    def _set_axes(self, axes: Axes) -> None:
        axes.set_xlabel(self.x_label)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6, steps=_STEPS, integer=True))
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5, steps=_STEPS))
        if self.is_logarithmic:
            low, high = self._range()
            factors = (1, 2, 5) if high < 100 * low else (1,)
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=factors, numticks=6))
            axes.yaxis.set_minor_locator(ticker.NullLocator())
        if self.from_zero:
            axes.set_ylim(bottom=0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ticker.FuncFormatter(_tick))

    def _range(self) -> tuple[float, float]:
        ys = [y for line in self.lines for _, y in line.points]
        return min(ys), max(ys)


def matrix(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Markup:
    """Draws a confusion matrix; a cell is as dark as its share of its row.

    Args:
      labels: of rows, which are true, and columns, which are predicted.
      counts: rows of columns.
    """
    num = len(labels)
    with matplotlib.rc_context({**_SETTINGS, "axes.grid": False}):
        figure = Figure(figsize=(_INCHES[0], 1.2 + 0.45 * num), layout="constrained")
        axes = figure.subplots()
        for row, values in enumerate(counts):
            for column, count in enumerate(values):
                share = count / max(sum(values), 1)
                # The text in a cell stays readable on the darkest.
                axes.add_patch(
                    Rectangle(
                        (column - 0.5, row - 0.5),
                        *(1, 1),
                        facecolor=_LINE_COLORS[0],
                        alpha=0.45 * share,
                    )
                )
                if num <= _MAX_COUNTED_LABELS:
                    text = f"{count:,}"
                    style: Any = {"ha": "center", "va": "center", "color": _INK}
                    axes.text(column, row, text, **style)
        axes.set_xlim(-0.5, num - 0.5)
        axes.set_ylim(num - 0.5, -0.5)
        axes.set_xticks(range(num), labels, rotation=90 if num > 8 else 0)
        axes.set_yticks(range(num), labels)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        return _svg(figure)


def _svg(figure: Figure) -> Markup:
    stream = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    text = stream.getvalue()
    # Names of parts, which the next picture repeats.
    text = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", text[text.index("<svg") :])
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    return Markup(text)  # matplotlib escapes the labels


def _draw_line(axes: Axes, line: Line) -> None:
    xs, ys, lows, highs = thin(line.points)
    index = line.color
    color = _FAINT if index is None else _LINE_COLORS[index % NUM_COLORS]
    axes.plot(
        xs,
        ys,
        color=color,
        label=line.label,
        linestyle="--" if (index or 0) >= NUM_COLORS else "-",
        linewidth=1 if index is None else 1.75,
        marker="o" if line.has_dots or len(xs) == 1 else None,
        markersize=4,
        clip_on=False,  # the first dot is on the edge
    )
    if len(xs) < len(line.points):
        axes.fill_between(xs, lows, highs, color=color, alpha=0.18, linewidth=0)


def thin(points: Sequence[Point]) -> np.ndarray:
    """Returns x, median, lowest and highest y: float [4, number of intervals].

    A line of more than 2 * NUM_INTERVALS points is cut into NUM_INTERVALS intervals, of
    which x is the mean; in a shorter line, each point is an interval.
    """
    count = NUM_INTERVALS if len(points) > 2 * NUM_INTERVALS else len(points)
    intervals = np.array_split(np.array(points), count)
    rows = [
        (xs.mean(), np.median(ys), ys.min(), ys.max())
        for xs, ys in (interval.T for interval in intervals)
    ]
    return np.array(rows).T


def _tick(value: float, _: int | None = None) -> str:
    """Writes a tick such as 0.0005, 500, 20k, 2.5M."""
    if abs(value) >= 1e4:
        return ticker.EngFormatter(sep="").format_eng(value)
    return f"{value:g}"
