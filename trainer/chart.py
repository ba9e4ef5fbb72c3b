"""Line charts for a web page: inline SVG, and HTML for their text.

An SVG is stretched to the width that there is; text, lines and dots are not. Colours
and places are classes and variables of `report.css`. There is no script: `<title>`
shows the values under the pointer.
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence

from trainer.markup import (
    Html,
    join,
    scientific,
    short,
    tag,
)

_WIDTH = 1000  # of every SVG, in its own units; heights are pixels
Point = tuple[float, float]
_LINE_PIXELS = 15  # height of a line of text
_LARGEST_LINEAR_RATIO = 20.0
_MOST_DOTS = 80
_NUM_READOUTS = 60


@dataclasses.dataclass(frozen=True)
class Scale:
    """Takes values from `low`..`high` to 0..1, evenly or by their logarithms."""

    low: float
    high: float
    log: bool = False

    def __call__(self, value: float) -> float:
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    @classmethod
    def of(cls, values: Sequence[float], *, from_zero: bool) -> "Scale":
        """Returns one that has room for the values, and a little more.

        It is logarithmic where they differ by more than an order of magnitude.
        """
        low, high = min(values), max(values)
        if not from_zero and low > 0 and high / low > _LARGEST_LINEAR_RATIO:
            room = (high / low) ** 0.05
            return cls(low / room, high * room, log=True)
        if low >= 0 and (from_zero or low <= 0.25 * high):
            return cls(0.0, high * 1.06 or 1.0)
        room = (high - low) * 0.06 or abs(high) * 0.1
        return cls(low - room, high + room)

    def ticks(self, count: int) -> list[float]:
        """Returns round values: about so many."""
        if self.log:
            return self._log_ticks(count)
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = power * next(m for m in (1, 2, 5, 10) if m * 1.4 >= rough / power)
        first, last = math.ceil(self.low / step), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]

    def _log_ticks(self, count: int) -> list[float]:
        powers = range(
            math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        )
        for factors in ((1, 2, 5), (1, 3), (1,)):
            ticks = [factor * 10.0**power for power in powers for factor in factors]
            ticks = [tick for tick in ticks if self.low <= tick <= self.high]
            if len(ticks) <= count + 2:
                break
        return ticks[:: -(-len(ticks) // (count + 2))]


def tick_labels(ticks: Sequence[float], *, log: bool = False) -> list[str]:
    """Returns them with one unit and number of decimals; of logarithms, each by itself.

    Args:
      ticks: at least one.
      log: whether they are a logarithmic scale's.
    """
    largest = max(map(abs, ticks))
    units = [(1e9, "B"), (1e6, "M"), (1e3, "k")] if largest >= 1e4 else []

    def unit_of(value: float) -> tuple[float, str]:
        return next((unit for unit in units if value >= unit[0]), (1.0, ""))

    step = min((b - a for a, b in itertools.pairwise(ticks)), default=largest) or 1.0
    if log:
        return [
            scientific(tick) if tick < 1e-3 else f"{tick / unit:,g}{name}"
            for tick, (unit, name) in zip(ticks, map(unit_of, ticks), strict=True)
        ]
    if step < 0.999e-3:
        return [scientific(tick) if tick else "0" for tick in ticks]
    unit, name = unit_of(largest)
    decimals = max(0, -math.floor(math.log10(step / unit) + 1e-9))
    return [f"{t / unit:,.{decimals}f}{name}" if t else "0" for t in ticks]


@dataclasses.dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
      label: its name; may be empty.
      points: (x, y), by x; all finite.
      css: its class, which gives the colour.
      dotted: each point has a dot, and the lowest a ring.
    """

    label: str
    points: Sequence[Point]
    css: str
    dotted: bool = False


@dataclasses.dataclass(frozen=True)
class Bucket:
    """What is drawn of the points between two x: their median, lowest and highest."""

    x: float
    y: float
    low: float
    high: float


def thin(points: Sequence[Point], num_buckets: int) -> list[Bucket]:
    """Returns buckets of the same width, with every extreme in them.

    Points that are at most twice as many as the buckets are kept as they are.
    """
    if len(points) <= 2 * num_buckets:
        return [Bucket(x, y, y, y) for x, y in points]
    start, end = points[0][0], points[-1][0]
    groups: dict[int, list[Point]] = {}
    for point in points:
        index = int((point[0] - start) / ((end - start) or 1) * num_buckets)
        groups.setdefault(min(index, num_buckets - 1), []).append(point)
    found = []
    for group in groups.values():
        xs, ys = zip(*group, strict=True)
        # The line is as long as the data.
        x = next((x for x in (start, end) if x in xs), statistics.fmean(xs))
        found.append(Bucket(x, statistics.median(ys), min(ys), max(ys)))
    return found


@dataclasses.dataclass(frozen=True)
class _Plot:
    """Where the values of a chart stand in its SVG."""

    x_scale: Scale
    y_scale: Scale
    height: int

    def x(self, value: float) -> float:
        return round(_WIDTH * self.x_scale(value), 1)

    def y(self, value: float) -> float:
        return round(self.height * (1 - self.y_scale(value)), 1)


@dataclasses.dataclass(frozen=True)
class Style:
    """How lines are drawn.

    Attributes:
      x_label: what x is.
      x_high: where the x axis, which starts at 0, ends.
      unit: of y.
      note: a sentence for what the picture does not say.
      large: takes all of the width, and is higher.
      from_zero: the y axis starts at 0.
      names, values: what stands at a line's end.
      num_buckets: to which a line is thinned; see `thin`.
    """

    x_label: str
    x_high: float
    unit: str = ""
    note: str = ""
    large: bool = False
    from_zero: bool = False
    names: bool = False
    values: bool = True
    num_buckets: int = 250


Drawn = list[tuple[Series, list[Bucket]]]


def line_chart(title: str, series: Sequence[Series], style: Style) -> Html | None:
    """Returns a figure with one line a series; None where no series has a point.

    Args:
      title: what is drawn.
      series: the lines, the strongest last.
      style: how.
    """
    buckets = [thin(line.points, style.num_buckets) for line in series]
    drawn = [pair for pair in zip(series, buckets, strict=True) if pair[1]]
    if not drawn:
        return None
    ys = [
        y for _, found in drawn for bucket in found for y in (bucket.low, bucket.high)
    ]
    y_scale = Scale.of(ys, from_zero=style.from_zero)
    x_scale = Scale(0.0, max(style.x_high, 1.0))
    plot = _Plot(x_scale, y_scale, 260 if style.large else 150)
    unit = f" {style.unit}{', logarithmic' if y_scale.log else ''}"
    note = tag("small", style.note) if style.note else None
    return tag(
        "figure",
        tag("figcaption", tag("b", title), unit, note),
        _plotted(title, drawn, plot, style),
        class_="chart large" if style.large else "chart",
    )


def _plotted(title: str, drawn: Drawn, plot: _Plot, style: Style) -> Html:
    """The picture with its axes; its margins are as wide as the texts in them."""
    x_ticks = [tick for tick in plot.x_scale.ticks(5) if tick == int(tick)]
    y_ticks = plot.y_scale.ticks(plot.height // 40)
    y_labels = tick_labels(y_ticks, log=plot.y_scale.log)
    names = [line.label if style.names else "" for line, _ in drawn]
    values = [short(found[-1].y) if style.values else "" for _, found in drawn]
    margins = {"left": y_labels, "name": names, "value": values}
    widths = [f"--{k}:{max(map(len, texts)) + 1}ch;" for k, texts in margins.items()]
    rules = "".join(f"M0 {plot.y(tick)}H{_WIDTH}" for tick in y_ticks)
    picture = tag(
        "svg",
        tag("path", d=rules, class_="grid"),
        tag("path", d=_axis(plot, x_ticks), class_="axis"),
        [_band(plot, line, found) for line, found in drawn],
        [_line(plot, line, found) for line, found in drawn],
        _readouts(plot, drawn, style.x_label),
        viewBox=f"0 0 {_WIDTH} {plot.height}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{title}. {_in_words(drawn, style.x_label)}",
    )
    return tag(
        "div",
        picture,
        _x_labels(plot, x_ticks, style.x_label),
        _y_labels([plot.y(tick) for tick in y_ticks], y_labels),
        _end_labels(plot, drawn, list(zip(names, values, strict=True))),
        class_="plot",
        style=f"--height:{plot.height}px;{''.join(widths)}",
    )


def _axis(plot: _Plot, ticks: list[float]) -> str:
    marks = [f"M{plot.x(tick)} {plot.height}v5" for tick in ticks]
    return f"M0 {plot.height}H{_WIDTH}{''.join(marks)}"


def _band(plot: _Plot, line: Series, buckets: list[Bucket]) -> Html | None:
    if all(bucket.low == bucket.high for bucket in buckets):
        return None
    points = [f"{plot.x(b.x)} {plot.y(b.high)}" for b in buckets]
    points += [f"{plot.x(b.x)} {plot.y(b.low)}" for b in reversed(buckets)]
    return tag("path", d=f"M{'L'.join(points)}Z", class_=f"band {line.css}")


def _line(plot: _Plot, line: Series, buckets: list[Bucket]) -> Html:
    points = [f"{plot.x(b.x)} {plot.y(b.y)}" for b in buckets]
    # A line of no length with round ends is a dot, which no stretching deforms.
    dots = "".join(f"M{point}h.01" for point in points)
    found = [tag("path", d=f"M{'L'.join(points)}", class_=f"line {line.css}")]
    if len(points) == 1 or (line.dotted and len(points) <= _MOST_DOTS):
        found.append(tag("path", d=dots, class_=f"dot {line.css}"))
    if len(points) > 1 and line.dotted:
        x, y = min(line.points, key=lambda point: point[1])
        place = f"M{plot.x(x)} {plot.y(y)}h.01"
        found.append(tag("path", d=place, class_=f"ring {line.css}"))
        found.append(tag("path", d=place, class_="hole"))
    return join(found)


def _readouts(plot: _Plot, drawn: Drawn, x_label: str) -> Html:
    """Strips, from top to bottom, whose title is what the lines are there."""
    xs = sorted({bucket.x for _, buckets in drawn for bucket in buckets})
    count = min(len(xs), _NUM_READOUTS)
    centres = [xs[(2 * i + 1) * len(xs) // (2 * count)] for i in range(count)]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(centres)]
    edges = itertools.pairwise([0.0, *middles, plot.x_scale.high])
    strips = []
    for (left, right), centre in zip(edges, centres, strict=True):
        texts = []
        for line, buckets in drawn:
            nearest = min(buckets, key=lambda bucket: abs(bucket.x - centre))
            if left <= nearest.x <= right:
                value = f"{line.label} {short(nearest.y)}".strip()
                texts.append(f"{value} ({x_label} {nearest.x:,.0f})")
        x, width = plot.x(left), round(plot.x(right) - plot.x(left), 1)
        title = tag("title", "\n".join(texts))
        strips.append(tag("rect", title, x=x, width=width, height=plot.height))
    return tag("g", strips)


def _in_words(drawn: Drawn, x_label: str) -> str:
    return " ".join(
        f"{line.label or 'It'} goes from {short(b[0].y)} at {x_label} {b[0].x:,.0f} to "
        f"{short(b[-1].y)} at {b[-1].x:,.0f}."
        for line, b in drawn
    )


def _labels(name: str, spans: list[Html]) -> Html:
    return tag("div", spans, class_=name, aria_hidden="true")


def _x_labels(plot: _Plot, ticks: list[float], x_label: str) -> Html:
    places = [f"left:{plot.x(tick) / _WIDTH:.2%}" for tick in ticks]
    labels = zip(tick_labels(ticks), places, strict=True)
    spans = [tag("span", label, style=place) for label, place in labels]
    return _labels("x", [*spans, tag("i", x_label)])


def _y_labels(tops: list[float], labels: list[str]) -> Html:
    places = zip(tops, labels, strict=True)
    return _labels("y", [tag("span", text, style=f"top:{y}px") for y, text in places])


def _end_labels(plot: _Plot, drawn: Drawn, ends: list[tuple[str, str]]) -> Html:
    """Names and values beside the lines' ends, none over another."""
    tops = apart([plot.y(buckets[-1].y) for _, buckets in drawn], plot.height)
    spans = []
    for (line, _), (name, value), top in zip(drawn, ends, tops, strict=True):
        number = tag("span", f" {value}" if name else value)
        style = f"top:{top:.1f}px"
        spans.append(tag("div", name, number, class_=line.css, style=style))
    return _labels("ends", spans)


def apart(tops: Sequence[float], height: float) -> list[float]:
    """Moves lines of text so far that none stands over another, down to `height`."""
    order = sorted(range(len(tops)), key=lambda index: tops[index])
    found = list(tops)
    for above, index in itertools.pairwise(order):
        found[index] = max(found[index], found[above] + _LINE_PIXELS)
    limit = height
    for index in reversed(order):
        found[index] = min(found[index], limit)
        limit = found[index] - _LINE_PIXELS
    return found
