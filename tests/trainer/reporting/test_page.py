"""The content of a report's page, and that nothing in a run's files becomes markup."""

import html.parser
import json
import math
import re
import shutil

import pytest

from tests.trainer.reporting.folders import (
    NAME,
    PAYLOAD,
    TEXT,
    a_manifest,
    evaluation,
    make_page,
    metrics,
    write_run,
)
from trainer.reporting import numbers


class Reader(html.parser.HTMLParser):
    """Collects elements and text; a page that is not well nested is an error."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.open = set(), "", []
        self.feed(page)
        assert self.open == [], "elements that are not closed"

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        assert not [name for name, _ in attributes if name.startswith("on")]
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def test_markup_in_a_file_stays_text(one):
    page = Reader(one.read_text())
    assert not page.tags & {"img", "script", "iframe", "object"}
    # The command, input, model, a sample, an event, an evaluation and a plan.
    assert page.text.count(PAYLOAD) >= 8
    assert page.text.count(NAME) >= 2  # title and heading
    assert TEXT in page.text


def test_quotes_in_a_name_do_not_end_an_attribute(tmp_path):
    names = ('a" onload="alert(1)', "b' onload='alert(1)")
    page = make_page(*(write_run(tmp_path / name) for name in names)).read_text()
    text = Reader(page).text  # checks the attributes
    assert all(name in text for name in names)


def test_the_page_shows_scores_sizes_memory_events_and_config(one):
    text = Reader(one.read_text()).text
    lines = metrics(2600, 10)
    scores = [x["validation_loss"] for x in lines if "validation_loss" in x]
    best = f"{min(scores):.4f}at step 2,340; final {scores[-1]:.4f}"
    assert best in text
    assert numbers.short(math.exp(min(scores))) in text
    for expected in (
        *("2,662,400", "5,336,576", "2,660,626", "10,797,148", "20,786"),
        *("✕ does not fit", "RESOURCE_EXHAUSTED", "2.00 of 15.00 GiB (13%)"),
        *("Time of a step: attention 25%, other products 75%", "remat block"),
        *("Memory and speed on a v3-8", "tokens per second, estimated"),
        *("Skipped: empty", "a byte order mark", "▲ warning", "✕ error"),
        *("2 updates were skipped", "optimizer.learning_rate", "113.06", "4.6123"),
    ):
        assert expected in text, expected
    assert text.index("Step 2,600") < text.index("Step 400")


def test_evaluations_of_different_protocols_are_kept_apart(one, tmp_path):
    page = one.read_text()
    sentence = "2 protocols, which differ in stride, detokenizer."
    assert sentence in Reader(page).text
    section = page[page.index('id="evaluation"') : page.index('id="samples"')]
    _, first, second = section.split("<tbody>")
    assert [("4.7279" in body, "4.6123" in body) for body in (first, second)] == [
        (True, False),
        (False, True),
    ]
    folder = write_run(tmp_path / "run")
    (folder / "evaluations" / "1.json").write_text(json.dumps(evaluation(4.6)))
    page = make_page(folder).read_text()
    section = page[page.index('id="evaluation"') : page.index('id="samples"')]
    assert section.count("<tbody>") == 1
    assert "which differ" not in section


def test_several_runs_are_compared(three):
    page = three.read_text()
    text = Reader(page).text
    assert "What differssweep_of_rates_lowsweep_of_rates_high" in text
    differing = page[page.index("What differs") :].partition("</table>")[0]
    assert re.findall(r"<th scope=\"row\">([\w.]+)</th>", differing) == [
        "optimizer.learning_rate",
        "dataset",
    ]
    assert "the x axis counts tokens" in text
    assert "datasets differ" in text
    loss = page[page.index("Training loss</b>") :].partition("</figure>")[0]
    assert [f"stroke: var(--c{index})" in loss for index in range(4)] == [
        *(True, True, True),
        False,
    ]


def test_runs_with_the_same_summary_share_it(tmp_path):
    page = make_page(*(write_run(tmp_path / name) for name in "ab")).read_text()
    assert Reader(page).text.count("All: A gpt2 model of 4 layers") == 1


def test_metrics_of_another_task_have_a_chart(tmp_path):
    lines = [{"step": step, "validation_accuracy": step / 10} for step in range(5)]
    folder = write_run(tmp_path / "run", lines=lines)
    page = make_page(folder).read_text()
    assert "<b>Validation accuracy</b>" in page


def test_runs_of_older_versions_show_overfitting(tmp_path):
    lines = [{"step": 7, "validation_loss": 2.0, "memorisation": 1}]
    page = make_page(write_run(tmp_path / "run", lines=lines)).read_text()
    assert "From step 7 on the model memorizes the text" in page


def test_runs_with_different_tokenizers_do_not_compare(tmp_path):
    other = a_manifest(tokenizer_fingerprint="cd" * 32)
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", data=other)]
    assert "different tokenizers" in make_page(*folders).read_text()


def test_a_run_that_has_just_started_has_hints_instead_of_results(tmp_path):
    folder = write_run(tmp_path / "run")
    for path in folder.iterdir():
        if path.name != "run.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / "run.json").write_text("{}")
    text = Reader(make_page(folder).read_text()).text
    for hint in (
        "trainer.train",
        f"trainer.evaluate --workdir={folder}",
        "trainer.plan",
    ):
        assert hint in text
    assert "Samples" not in text
    assert "Events" not in text


@pytest.mark.parametrize("num_lines", [100_000])
def test_a_long_run_is_a_small_page_with_its_spikes(tmp_path, num_lines):
    lines = metrics(num_lines, 1)
    spike = next(x for x in lines if x["step"] == 71_234 and "loss" in x)
    spike["loss"] = 42.0
    page = make_page(write_run(tmp_path / "run", lines=lines))
    assert page.stat().st_size < 400_000
    loss = page.read_text().partition('id="curves"')[2].partition("</figure>")[0]
    assert ">40</text>" in loss  # at the axis
    assert "fill-opacity: 0.18" in loss
