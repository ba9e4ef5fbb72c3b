"""The documentation: whether what it names exists."""

import pathlib
import re

import pytest

from configs import schema
from tests.conftest import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
ROOMS = ("configs", "tfrecords", "data_pipeline", "trainer", "tests", "benchmarks")
# Files that docs/architecture.md proposes to someone who adds something.
PROPOSED = {"trainer/optimizers/lion.py", "trainer/tasks/token_classification.py"}


def test_the_readme_has_at_most_1200_words():
    assert len((ROOT / "README.md").read_text().split()) <= 1200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)]+)\)", page.read_text())
    for link in links:
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in _anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_fields_and_targets_exist(page):
    text = page.read_text()
    paths = set(re.findall(rf"\b(?:{'|'.join(ROOMS)})/[\w/.]*\w", text)) - PROPOSED
    assert [path for path in paths if not (ROOT / path).exists()] == []

    known = schema.flatten(schema.Config())
    concerns = "|".join({name.split(".")[0] for name in known})
    fields = set(re.findall(rf"(?:--config\.|`)((?:{concerns})(?:\.\w+)+)", text))
    assert fields - {"model.safetensors"} <= set(known)  # a file

    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.M)
    named = set(re.findall(r"(?:^|`)make +([a-z][a-z-]*)", text, re.M))
    assert named <= set(targets)


def _anchors(page: pathlib.Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}
