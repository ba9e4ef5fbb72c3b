"""The run report: what it says, that it is safe and small, and how browsers show it."""

import dataclasses
import html
import html.parser
import itertools
import json
import math
import pathlib
import random
import re
import shutil

import pytest

from configs import schema
from tests import programs
from tfrecords import manifest
from tfrecords.storage import files, gcs
from trainer.reporting import charts, markup, runs

CHROMIUM, CHROMEDRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
PAYLOAD = "<img src=x onerror=alert(1)>\"'&</style></title><!--"
TEXT = f"The castle <b>was</b> & is\n\n    if x < 3:\n生命的意义在于创造。{PAYLOAD}"
GIB = 2**30


# -- a run's folder


def write_lines(path, lines, torn=""):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)


def a_manifest(**changes):
    shards = (manifest.Shard("train-00000-of-00001.tfrecord", 20_786, 1, "0" * 64),)
    counts = {"documents": 617, "words": 2_051_910, "bytes": 10_797_148}
    notes = {"skipped": {"empty": 3}, "repaired": {"a byte order mark": 1}}
    train = manifest.Split(
        tokens=2_660_626, stride=128, shards=shards, **counts, **notes
    )
    values = {
        "format_version": 2,
        "sequence_length": 128,
        "token_dtype": "uint16",
        "vocabulary_size": 8192,
        "end_of_text_id": 0,
        "pad_id": 0,
        "padding_side": "right",
        "tokenizer_fingerprint": "ab" * 32,
        "tokenizer_engine": "",
        "added_tokens": (),
        "mode": "packed",
        "config": {},
        "splits": {"train": train, "validation": manifest.Split(tokens=278_498)},
    }
    return manifest.Manifest(**(values | changes))


def metrics(num_steps, every, rate=1e-3, seed=0):
    noise, lines = random.Random(seed), []
    for step in range(0, num_steps + 1, every):
        loss = 4.5 + 4.5 * math.exp(-6 * step / num_steps)
        if step:
            values = {"loss": loss + noise.gauss(0, 0.1), "learning_rate": rate}
            values |= {
                "gradient_norm": math.exp(noise.gauss(0, 1.2)),
                "update_norm": 0.1,
            }
            values |= {"tokens": step * 1024, "tokens_per_second": 2050.0, "mfu": 0.41}
            values |= {"skipped_updates": 2.0, "hbm_bytes_in_use": 6 * GIB}
            lines.append({"step": step, **values})
        if step % (num_steps // 10) == 0:
            # The lowest is not the last one.
            score = loss + 0.3 * (step == num_steps)
            scores = {
                "validation_loss": score,
                "validation_perplexity": math.exp(score),
            }
            lines.append({"step": step, **scores, "memorisation": 0})
    return lines


def evaluation(loss=4.7279, **protocol):
    return {
        "model": "step 2600",
        "step": 2600,
        "split": "validation",
        "tokens": 278_498,
        "tokens_scored": 276_322,
        "words": 213_886,
        "bytes": 1_121_681,
        "loss": loss,
        "token_perplexity": math.exp(loss),
        "word_perplexity": 471.4,
        "bits_per_byte": 1.6935,
        "protocol": {
            "dataset": "3f2a9c0d1b7e4a55",
            "tokenizer": "abababababababab",
            "context_length": 128,
            "stride": 128,
            "precision": "float32",
            **protocol,
        },
    }


def plan(tpu_type, hbm, sizes):
    names = ("argument_bytes", "temporary_bytes", "generated_code_bytes")
    found = dict.fromkeys((*names, "peak_bytes"))
    if sizes:
        found = dict(zip(names, sizes, strict=True)) | {"peak_bytes": sum(sizes)}
    refusal = f"RESOURCE_EXHAUSTED: Used 10.63G of 7.48G hbm. {PAYLOAD}"
    return {
        "tpu_type": tpu_type,
        "hbm_available_bytes": hbm,
        "fits": bool(sizes),
        "message": "" if sizes else refusal,
        "num_replicas": 8,
        **found,
        "microbatch_size": 16,
        "accumulation_steps": 4,
        "remat": "block",
    }


def write_run(
    folder: pathlib.Path,
    *,
    rate: float = 1e-3,
    tokens_per_step: int = 1024,
    data: manifest.Manifest | None = None,
    lines: list | None = None,
) -> pathlib.Path:
    """Writes all that a run's folder can hold."""
    for name in ("evaluations", "plans"):
        (folder / name).mkdir(parents=True)
    config = schema.Config(
        data=schema.DataConfig(input=f"corpus/{PAYLOAD}", sequence_length=128),
        optimizer=schema.OptimizerConfig(learning_rate=rate),
    )
    record = {
        "command": f"python -m trainer.train --x='{PAYLOAD}'",
        "num_steps": 2600,
        "hardware": "CPU x 2",
        "parameter_count": 5_336_576,
        "tokens_per_step": tokens_per_step,
        "config": dataclasses.asdict(config),
        "model_config": {"n_layer": 4, "n_head": 4, "n_embd": 256, "more": PAYLOAD},
        "versions": {"gpt2-tpu": "0.1.0", "tensorflow": "2.20.0"},
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "manifest.json").write_text(manifest.to_json(data or a_manifest()))
    lines = lines or metrics(2600, 10, rate)
    write_lines(folder / "metrics.jsonl", lines, torn='{"step": 26')
    samples = [(400, "", TEXT), (2600, "The castle", TEXT), (2600, "", f"\n{TEXT}" * 9)]
    samples = [{"step": s, "prompt": p, "text": t} for s, p, t in samples]
    write_lines(folder / "samples.jsonl", samples)
    events = [
        (None, "info", "started"),
        (400, "warning", PAYLOAD),
        (9, "error", "gone"),
    ]
    time = {"time": "2026-11-22T09:00:00Z"}
    events = [time | {"step": s, "level": v, "message": m} for s, v, m in events]
    write_lines(folder / "events.jsonl", events)
    scored = [evaluation(), evaluation(4.6123, stride=32, detokenizer=PAYLOAD)]
    for index, found in enumerate(scored):
        (folder / "evaluations" / f"{index}.json").write_text(json.dumps(found))
    plans = [plan("v2-8", int(7.48 * GIB), None), plan("v3-8", 15 * GIB, [GIB, GIB, 9])]
    for found in plans:
        path = folder / "plans" / f"{found['tpu_type']}.json"
        path.write_text(json.dumps(found))
    return folder


def make(*arguments):
    """Runs the program; returns its code, output, and the one message it logs."""
    process = programs.run("trainer.report", *map(str, arguments))
    assert "Traceback" not in process.stderr, process.stderr
    return process.returncode, process.stdout, process.stderr


def make_page(*folders):
    output = folders[0].parent / "page.html"
    flag = "workdirs" if len(folders) > 1 else "workdir"
    runs = ",".join(map(str, folders))
    code, _, log = make(f"--{flag}={runs}", f"--output={output}")
    assert code == 0, log
    return output


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return make_page(write_run(tmp_path_factory.mktemp("one") / "wikitext2"))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    root = tmp_path_factory.mktemp("three")
    other = a_manifest(vocabulary_size=9000)
    folders = [
        write_run(root / "sweep_of_rates_low", rate=3e-4),
        write_run(root / "sweep_of_rates_high"),
        write_run(root / "sweep_of_rates_wide", tokens_per_step=2048, data=other),
    ]
    return make_page(*folders)


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


# -- without a browser


def test_nothing_of_a_file_becomes_markup(one):
    found = Reader(one.read_text())
    assert not found.tags & {"img", "script", "iframe", "object"}
    # Its command, its input, its model, a sample, an event, an evaluation, a plan.
    assert found.text.count(PAYLOAD) >= 8
    assert TEXT in found.text


def test_a_name_cannot_leave_its_attribute(tmp_path):
    names = ('a" onload="alert(1)', "b' onload='alert(1)")
    page = make_page(*(write_run(tmp_path / name) for name in names)).read_text()
    text = Reader(page).text  # which looks at the attributes
    assert all(name in text for name in names)


def test_what_the_page_says(one):
    text = Reader(one.read_text()).text
    lines = metrics(2600, 10)
    scores = [x["validation_loss"] for x in lines if "validation_loss" in x]
    best = f"{min(scores):.4f}at step 2,340; final {scores[-1]:.4f}"
    assert best in text
    assert markup.short(math.exp(min(scores))) in text
    for said in (
        *("2,662,400", "5,336,576", "2,660,626", "10,797,148", "20,786"),
        *("✕ does not fit", "RESOURCE_EXHAUSTED", "2.00 of 15.00 GiB (13%)"),
        *("Skipped: empty", "a byte order mark", "▲ warning", "✕ error"),
        *("2 updates were skipped", "optimizer.learning_rate", "113.06", "4.6123"),
    ):
        assert said in text, said
    assert text.index("Step 2,600") < text.index("Step 400")


def test_evaluations_of_other_protocols_are_kept_apart(one, tmp_path):
    page = one.read_text()
    said = "2 protocols, which differ in stride, detokenizer."
    assert said in Reader(page).text
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
    assert re.findall(r"<code>([\w.]+)</code></th>", differing) == [
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


def test_runs_of_other_tokenizers_do_not_compare(tmp_path):
    other = a_manifest(tokenizer_fingerprint="cd" * 32)
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", data=other)]
    assert "different tokenizers" in make_page(*folders).read_text()


def test_a_run_that_has_just_started(tmp_path):
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


def test_values_that_are_no_numbers_or_no_text(tmp_path):
    lines = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": math.nan}, {"step": 3}]
    lines.append({"step": 3, "validation_loss": 800.0})  # exp of it is none
    folder = write_run(tmp_path / "run", lines=lines)
    (folder / "samples.jsonl").write_text('{"step": 1, "text": "half \\ud83d"}\n')
    text = Reader(make_page(folder).read_text()).text
    assert "half ?" in text
    assert "nan" not in text


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


def test_it_reads_and_writes_buckets(bucket, tmp_path):
    folder = write_run(tmp_path / "run")
    for path in folder.rglob("*.*"):
        name = f"runs/first/{path.relative_to(folder)}"
        gcs.blob(f"{bucket}/{name}").upload_from_string(path.read_bytes())
    there = runs.read(f"{bucket}/runs/first/", "run")
    here = runs.read(str(folder), "run")
    assert there.evaluations
    assert dataclasses.replace(there, workdir=str(folder)) == here
    output = f"{bucket}/report.html"
    code, _, log = make(f"--workdir={bucket}/runs/first", f"--output={output}")
    assert code == 0, log
    assert files.read(output).startswith(b"<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Received: neither."),
        (["--workdir={run}", "--workdirs={run}"], "Received: both."),
        (["--workdir={run}"], "`--output` must be the HTML file"),
        (["--workdir={run}", "--output={run}"], "`--output` must be the HTML file"),
        (["--workdir={run}/plans", "--output=x.html"], "which has no run.json"),
        (["--workdirs={run},{run}/", "--output=x.html"], "must name each run once"),
        (["--workdir={run}", "--output=x.html", "more"], "Only flags"),
    ],
)
def test_mistakes_are_told_in_one_message(tmp_path, arguments, message):
    folder = write_run(tmp_path / "run")
    code, out, log = make(*(argument.format(run=folder) for argument in arguments))
    assert (code, out) == (2, "")
    assert log.splitlines()[-1].startswith("error: ")
    assert message in log


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", "{", "run.json is damaged"),
        ("run.json", "[]", "run.json is damaged: not an object"),
        ("metrics.jsonl", '{"step": 1}\n{"st\n{"step": 2}\n', "metrics.jsonl, line 2"),
        ("metrics.jsonl", '{"loss": 1}\n', "line 1 is damaged: no field 'step'"),
        ("plans/v2-8.json", "", "v2-8.json is damaged"),
        ("manifest.json", "{}", "manifest.json is damaged"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    folder = write_run(tmp_path / "run")
    (folder / name).write_text(content)
    code, _, log = make(f"--workdir={folder}", f"--output={tmp_path}/x.html")
    assert code == 2
    assert message in log


def test_it_prints_where_the_page_is(tmp_path):
    folder, output = write_run(tmp_path / "a" / "run"), tmp_path / "new" / "x.html"
    other = write_run(tmp_path / "b" / "run")
    _, out, _ = make(f"--workdirs={folder},{other}", f"--output={output}", "--json")
    found = {"output": str(output), "runs": ["a/run", "b/run"]}
    assert json.loads(out) == found
    _, out, _ = make(f"--workdir={folder}", f"--output={output}")
    assert str(output) in out
    assert output.read_text().startswith("<!DOCTYPE html>")


# -- the parts of a chart


def test_thinning_keeps_extremes():
    noise = random.Random(0)
    points = [(float(x), noise.gauss(0, 1)) for x in range(10_000)]
    points[1234], points[8765] = (1234.0, 99.0), (8765.0, -99.0)
    xs, ys, lows, highs = charts.thin(points)
    assert len(xs) == charts.NUM_INTERVALS
    assert all(a < b for a, b in itertools.pairwise(xs))
    assert (lows.min(), highs.max()) == (-99.0, 99.0)
    assert abs(ys).max() < 1
    few = points[: 2 * charts.NUM_INTERVALS]
    assert charts.thin(few)[:2].T.tolist() == [list(point) for point in few]


@pytest.mark.parametrize(
    ("values", "from_zero", "expected"),
    [
        ([90.0, 12_000.0], False, ["100", "1000", "10k"]),
        ([1.0, 10.0], False, ["2", "10"]),
        ([2e-7, 6e-4], True, ["0", "0.0002", "0.0006"]),
        ([0.0, 2_600_000.0], True, ["0", "1M", "2M"]),
        ([4.5, 4.5], False, ["4.5"]),
        ([-2.0, 30.0], False, ["0", "10"]),
    ],
)
def test_axes_have_round_values(values, from_zero, expected):
    line = charts.Line("", list(enumerate(values)))
    chart = charts.line_chart("A", [line], x_label="step", from_zero=from_zero)
    assert ("logarithmic" in chart) == (values[1] == 12_000)
    for text in expected:
        assert f">{text}<" in chart.replace("\N{MINUS SIGN}", "-")


def test_a_chart_of_nothing_is_none():
    assert charts.line_chart("A", [charts.Line("", [])], x_label="step") is None


# -- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    for program in (CHROMIUM, CHROMEDRIVER):
        if not pathlib.Path(program).exists():
            pytest.skip(f"{program} is not on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for name in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(f"--{name}")
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    service = webdriver.ChromeService(CHROMEDRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    driver.get("about:blank")  # instead of a new tab's page, which asks for much
    yield driver
    driver.quit()


@pytest.fixture(params=["one", "three"])
def page(request):
    return request.getfixturevalue(request.param)


def show(browser, page, *, width=1280, scheme="light", media="screen"):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    emulated = {"media": media, "features": features}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", emulated)
    browser.get(page.as_uri())


def test_the_page_says_nothing_and_asks_for_nothing(browser, page):
    for log in ("browser", "performance"):
        browser.get_log(log)
    show(browser, page)
    assert browser.get_log("browser") == []
    messages = [
        json.loads(e["message"])["message"] for e in browser.get_log("performance")
    ]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    urls = {found["request"]["url"] for found in sent}
    assert {url for url in urls if not url.startswith("data:")} == {page.as_uri()}
    assert browser.execute_script("return document.scripts.length") == 0


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
def test_charts_hold_their_lines_and_their_texts_are_apart(browser, page, width):
    show(browser, page, width=width)
    found = browser.execute_script(CHARTS)
    titles = [figure["title"] for figure in found]
    losses = ["Loss"] if page.parent.name.startswith("one") else []
    losses = losses or ["Training loss", "Validation loss"]
    assert titles == [
        *losses,
        *("Validation perplexity", "Learning rate", "Throughput"),
        *("Model FLOPs utilisation", "HBM in use", "Gradient norm", "Update norm"),
    ]
    for figure in found:
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
    found = browser.execute_script(
        "return [...document.querySelectorAll('.bar')].map(bar => "
        "[...bar.querySelectorAll('.room, .room i')].map("
        "part => part.getBoundingClientRect().width))"
    )
    (_, *refused), (room, weights, temporaries, code) = found
    assert refused == []
    assert weights == pytest.approx(room / 15, rel=0.02)
    assert temporaries == pytest.approx(room / 15, rel=0.02)
    assert code < 1


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_of_the_window(browser, page, width):
    show(browser, page, width=width)
    sizes = browser.execute_script(
        "document.querySelectorAll('details').forEach(d => d.open = true);"
        "const root = document.documentElement;"
        "return [root.scrollWidth, root.clientWidth]"
    )
    assert sizes[0] <= sizes[1]


COLOURS = """
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


def luminance(colour):
    channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
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
def test_text_can_be_read_on_its_background(browser, page, scheme, media, dark):
    show(browser, page, scheme=scheme, media=media)
    found = browser.execute_script(COLOURS)
    assert len(found) > 200
    for colour, background, text in found:
        light = sorted((luminance(colour), luminance(background)))
        assert (light[1] + 0.05) / (light[0] + 0.05) >= 4.5, (colour, background, text)
        assert (luminance(background) < 0.1) == dark


def test_paper_shows_what_is_folded_on_screen(browser, page):
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
