"""How Chromium shows a report: on screens, on paper, without scripts or requests."""

import re

import pytest

from tests import chromium
from tests.trainer.reporting.folders import PAYLOAD


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    yield from chromium.start(tmp_path_factory.mktemp("profile"))


@pytest.fixture(params=["one", "three"])
def page(request):
    return request.getfixturevalue(request.param)


def show(browser, page, *, width=1280, scheme="light", media="screen"):
    chromium.set_width(browser, width)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    emulated = {"media": media, "features": features}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", emulated)
    browser.get(page.as_uri())


def test_the_page_logs_nothing_requests_nothing_and_runs_no_script(browser, page):
    for log in ("browser", "performance"):
        browser.get_log(log)
    show(browser, page)
    assert browser.get_log("browser") == []
    assert chromium.requested_urls(browser) == {page.as_uri()}
    assert browser.execute_script("return document.scripts.length") == 0
    assert browser.execute_script("return document.images.length") == 0
    shown = browser.execute_script("return document.body.textContent")
    assert shown.count(PAYLOAD) >= 8


CHARTS = """
return [...document.querySelectorAll("figure.chart")].map(figure => {
  const box = element => { const b = element.getBoundingClientRect();
    return [b.left, b.top, b.right, b.bottom]; };
  const lines = [...figure.querySelectorAll("path")].filter(
    path => path.closest("defs") === null && path.style.stroke.startsWith("var(--"));
  return {title: figure.querySelector("b").textContent,
    plot: box(figure.querySelector("svg")), lines: lines.map(box),
    texts: [...figure.querySelectorAll("text")].map(box),
    label: figure.querySelector("[role=img]").getAttribute("aria-label")};
});"""


def overlap(a, b):
    across = min(a[2], b[2]) - max(a[0], b[0])
    return min(across, min(a[3], b[3]) - max(a[1], b[1]))


@pytest.mark.parametrize("width", [390, 1280])
def test_charts_contain_their_lines_and_their_texts_do_not_overlap(
    browser, page, width
):
    show(browser, page, width=width)
    figures = browser.execute_script(CHARTS)
    titles = [figure["title"] for figure in figures]
    losses = ["Loss"] if page.parent.name.startswith("one") else []
    num_runs = len(losses) or 3
    losses = losses or ["Training loss", "Validation loss"]
    assert titles == [
        *losses,
        *("Validation perplexity", "Learning rate", "Throughput"),
        *("Model FLOPs utilization", "HBM in use", "Gradient norm", "Update norm"),
        *(["Memory and speed on a v3-8"] * num_runs),
    ]
    for figure in figures:
        left, top, right, bottom = figure["plot"]
        assert right - left > 300, figure["title"]
        assert bottom - top > 150
        assert figure["label"]
        assert len(figure["texts"]) >= 5
        for inner in figure["lines"] + figure["texts"]:
            assert inner[0] >= left - 1, figure["title"]
            assert inner[1] >= top - 1, figure["title"]
            assert inner[2] <= right + 1, figure["title"]
            assert inner[3] <= bottom + 1, figure["title"]
        assert max(line[2] - line[0] for line in figure["lines"]) > 0.8 * (right - left)
        for index, text in enumerate(figure["texts"]):
            assert text[3] - text[1] >= 9, figure["title"]  # pixels
            for other in figure["texts"][index + 1 :]:
                assert overlap(text, other) <= 0, figure["title"]


def test_bars_are_as_long_as_the_shares_of_memory(browser, one):
    show(browser, one)
    widths = browser.execute_script(
        "return [...document.querySelectorAll('.bar')].map(bar => "
        "[...bar.querySelectorAll('.room, .room i')].map("
        "part => part.getBoundingClientRect().width))"
    )
    (_, *refused), (room, weights, temporaries, code) = widths
    assert not any(refused)
    assert weights == pytest.approx(room / 15, rel=0.02)
    assert temporaries == pytest.approx(room / 15, rel=0.02)
    assert code < 1


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_not_wider_than_the_window(browser, page, width):
    show(browser, page, width=width)
    sizes = browser.execute_script(
        "document.querySelectorAll('details').forEach(d => d.open = true);"
        "const root = document.documentElement;"
        "return [root.scrollWidth, root.clientWidth]"
    )
    assert sizes[0] <= sizes[1]


COLORS = """
const text = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || element.tagName === "style") continue;
  const style = getComputedStyle(element);
  let back = element;
  while (getComputedStyle(back).backgroundColor === "rgba(0, 0, 0, 0)")
    back = back.parentElement;
  text.push([element.closest("svg") ? style.fill : style.color,
             getComputedStyle(back).backgroundColor, walker.currentNode.data]);
}
return text;"""


def luminance(color):
    channels = [int(c) / 255 for c in re.findall(r"\d+", color)[:3]]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    ]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize(
    ("scheme", "media", "dark"),
    [
        ("light", "screen", False),
        ("dark", "screen", True),
        ("dark", "print", False),
    ],
)
def test_text_has_enough_contrast(browser, page, scheme, media, dark):
    show(browser, page, scheme=scheme, media=media)
    texts = browser.execute_script(COLORS)
    assert len(texts) > 200
    for color, background, text in texts:
        light = sorted((luminance(color), luminance(background)))
        assert (light[1] + 0.05) / (light[0] + 0.05) >= 4.5, (color, background, text)
        assert (luminance(background) < 0.1) == dark


def test_print_shows_details_that_are_closed_on_screen(browser, page):
    heights = (
        "return [...document.querySelectorAll('details:not([open]) > :not(summary)')]"
        ".map(e => e.checkVisibility({contentVisibilityAuto: true}) ? "
        "e.getBoundingClientRect().height : 0)"
    )
    show(browser, page)
    folded = browser.execute_script(heights)
    assert len(folded) >= 4
    assert max(folded) == 0
    show(browser, page, media="print")
    assert min(browser.execute_script(heights)) > 0
    breaks = browser.execute_script(
        "return [...document.querySelectorAll('figure.chart')]"
        ".map(e => getComputedStyle(e).breakInside)"
    )
    assert set(breaks) == {"avoid"}
