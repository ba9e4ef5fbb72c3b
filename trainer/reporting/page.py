"""Renders the page of a report: `templates/report.html`."""

from collections.abc import Sequence

import jinja2

from trainer.reporting import curves, numbers, sections
from trainer.reporting.runs import Run

_FILTERS = {"gib": numbers.gib, "label": numbers.label, "text": numbers.text}


def page(runs: Sequence[Run]) -> str:
    """Returns the page, one HTML document that needs no other file."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trainer.reporting"),
        autoescape=True,  # samples, names and configs are text, never markup
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= _FILTERS
    template = environment.get_template("report.html")
    return template.render(runs=runs, sections=sections, curves=curves)
