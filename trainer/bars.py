"""Stacked bars against a limit, for a web page: inline SVG; see `chart`."""

import dataclasses
import itertools
from collections.abc import Sequence

from trainer.markup import (
    Html,
    tag,
)

_WIDTH = 1000  # of every SVG, in its own units; heights are pixels


@dataclasses.dataclass(frozen=True)
class Bar:
    """A row of stacked bars.

    Attributes:
      label: what it is of.
      shares: of the limit, for each part; none where nothing is known of them.
      text: what it comes to.
      message: what else is to say of it, below.
    """

    label: str
    shares: Sequence[float]
    text: str
    message: str = ""


def stacked_bars(
    title: str, parts: Sequence[str], limit: str, rows: Sequence[Bar]
) -> Html:
    """Returns a figure of bars against a common limit, which is a line.

    Args:
      title: what is drawn.
      parts: the names of what a bar is made of.
      limit: the name of the limit.
      rows: the bars.
    """
    full = _WIDTH / max(1.06, *(1.02 * sum(row.shares) for row in rows))
    legend = [tag("span", part, class_=f"key p{i}") for i, part in enumerate(parts)]
    legend.append(tag("span", limit, class_="key limit"))
    bars = []
    for row in rows:
        message = tag("p", row.message, class_="message") if row.message else None
        name, text = tag("span", row.label), tag("span", row.text, class_="sum")
        bars.append(
            tag("div", name, _bar(row, parts, full), text, message, class_="bar")
        )
    caption = tag("figcaption", tag("b", title), tag("span", legend, class_="legend"))
    return tag("figure", caption, bars, class_="bars")


def _bar(row: Bar, parts: Sequence[str], full: float) -> Html:
    room = "room" if row.shares else "room unknown"
    rects = [tag("rect", y=3, width=round(full, 1), height=16, class_=room)]
    starts = itertools.accumulate(row.shares, initial=0.0)
    for index, (part, share, start) in enumerate(
        zip(parts, row.shares, starts, strict=False)
    ):
        title = tag("title", f"{part}: {share:.1%}")
        x, width = round(start * full, 1), round(share * full, 1)
        rects.append(
            tag("rect", title, x=x, y=3, width=width, height=16, class_=f"p{index}")
        )
    return tag(
        "svg",
        rects,
        tag("path", d=f"M{full:.1f} 0v22", class_="limit"),
        viewBox=f"0 0 {_WIDTH} 22",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{row.label}: {row.text}",
    )
