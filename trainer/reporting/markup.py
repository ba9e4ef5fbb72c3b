"""HTML from Python: elements, whose texts are escaped, tables and small print."""

import html
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence


class Html(str):
    """Text that is markup already, and is not escaped again."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """Returns an element; all that is not `Html` is escaped.

    Args:
      name: such as "td".
      *children: texts, elements, or lists of them; None is left out.
      **attributes: `class_` is "class", `aria_label` "aria-label"; None or False is
        left out, True has no value.
    """
    start = name
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            start += f" {key}"
        elif value is not None and value is not False:
            start += f' {key}="{html.escape(str(value))}"'
    if name in ("meta", "link"):
        return Html(f"<{start}>")
    return Html(f"<{start}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Html:
    """Returns elements and texts, one after the other."""
    parts = []
    for child in children:
        if isinstance(child, (list, tuple)):
            child = join(child)
        if child is not None:
            parts.append(child if isinstance(child, Html) else html.escape(str(child)))
    return Html("".join(parts))


def short(value: float) -> str:
    """Returns a number with four significant digits."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.{min(3 - math.floor(math.log10(abs(value))), 4)}f}"


class Figure(str):
    """A number that is written out already."""

    __slots__ = ()


def text(value: object) -> str:
    """Returns what a person reads for a value; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else short(value)


def note(sentence: str) -> Html:
    """Returns a line of small print, in which `this` is code."""
    parts = enumerate(sentence.split("`"))
    return tag("p", [tag("code", p) if i % 2 else p for i, p in parts], class_="note")


def table(head: Sequence[object], *bodies: Sequence[Sequence[object]]) -> Html:
    """Returns a table in a box that it scrolls in; numbers stand to the right.

    Args:
      head: names of the columns.
      *bodies: rows, which their first cell names; those of a body stand together.
    """
    numeric = [
        any(cell is None or isinstance(cell, (int, float, Figure)) for cell in column)
        for column in zip(*itertools.chain(*bodies), strict=True)
    ]
    css = ["n" if right else None for right in numeric]
    heads = zip(head, css, strict=True)
    found = [tag("tr", [tag("th", h, scope="col", class_=c) for h, c in heads])]
    return tag(
        "div",
        tag(
            "table",
            tag("thead", found),
            [tag("tbody", [_row(cells, css) for cells in body]) for body in bodies],
        ),
        class_="scroll",
        tabindex="0",  # a box that the keyboard reaches can be scrolled by it
    )


def _row(cells: Sequence[object], css: Sequence[str | None]) -> Html:
    shown = [cell if isinstance(cell, Html) else text(cell) for cell in cells]
    others = zip(shown[1:], css[1:], strict=True)
    named = tag("th", shown[0], scope="row")
    return tag("tr", named, [tag("td", cell, class_=c) for cell, c in others])


def section(title: str, *children: object) -> Html:
    return tag("section", tag("h2", title), children, id=title.split()[0].lower())


def details(title: str, *children: object, is_open: bool = False) -> Html:
    return tag("details", tag("summary", title), children, open=is_open)


def fact_list(facts: Mapping[str, object]) -> Html:
    pairs = [
        tag(
            "div",
            tag("dt", name),
            tag("dd", value if isinstance(value, Html) else text(value)),
        )
        for name, value in facts.items()
        if value not in (None, "")
    ]
    return tag("dl", pairs, class_="facts")


def words(name: str) -> str:
    return name.replace("_", " ")
