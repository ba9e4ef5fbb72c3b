"""`trainer.demo` as a user meets it: a process, a page in Chromium, the keyboard."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from tests import chromium, programs
from tests.conftest import ROOT, assert_refused

PROMPT = "The <script>alert(1)</script>\nquick"
# Keeps the lengths that the text has while it grows.
WATCH = """
window.lengths = [];
const text = document.getElementById("text");
new MutationObserver(() => window.lengths.push(text.textContent.length)).observe(
  text, {childList: true, subtree: true, characterData: true});"""
TEXT, STATUS = (
    f"return document.getElementById('{name}').textContent"
    for name in ("text", "status")
)
WAITS = "return document.getElementById('stop-button').ariaDisabled === 'true'"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    yield from chromium.start(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def url(small_run, tmp_path_factory):
    """The page of a program, as a user starts it."""
    command = [sys.executable, "-m", "trainer.demo", "--port=0", "--json"]
    log = tmp_path_factory.mktemp("demo") / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*command, f"--workdir={small_run / 'run'}"],
            cwd=ROOT,
            env=os.environ | {"USE_TORCH": "0"},
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
        )
    page = json.loads(process.stdout.readline())["page"]
    yield page
    # Ctrl-C, while a text grows.
    with urllib.request.urlopen(f"{page}generate", data=b"max_new_tokens=99&top_k=9"):
        process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
    assert "Traceback" not in log.read_text()


@pytest.mark.slow
def test_the_keyboard_gets_the_text_of_generate_and_nothing_else_is_asked(
    browser, url, small_run
):
    keys = chromium.keys()
    chromium.set_width(browser, 1280)
    for log in ("browser", "performance"):
        browser.get_log(log)
    chromium.open_form(browser, url)
    browser.execute_script(WATCH)
    first, second = PROMPT.split("\n")
    chromium.press(browser, first, keys.SHIFT, keys.ENTER, keys.NULL, second)
    for name, value in (("max_new_tokens", "40"), ("temperature", "0.7")):
        chromium.tab_to(browser, name)
        chromium.press(browser, keys.CONTROL, "a", keys.NULL, value)
    chromium.tab_to(browser, "top_p")
    chromium.press(browser, *[keys.LEFT] * 10)
    chromium.tab_to(browser, "seed")
    chromium.press(browser, keys.CONTROL, "a", keys.NULL, "3", keys.ENTER)
    chromium.wait(browser, WAITS)

    flags = ("--max_new_tokens=40", "--temperature=0.7", "--top_p=0.9", "--seed=3")
    workdir = f"--workdir={small_run / 'run'}"
    same = programs.run(
        "trainer.generate", workdir, *flags, "--json", f"--prompt={PROMPT}"
    )
    (expected,) = json.loads(same.stdout)["results"][0]["texts"]
    assert browser.execute_script(TEXT) == expected
    assert expected.startswith(PROMPT)
    lengths = browser.execute_script("return lengths")
    assert len(set(lengths)) > 5
    assert lengths == sorted(lengths)
    status = browser.execute_script(STATUS)
    assert status.startswith("40 tokens, ")
    assert status.endswith(" tokens/s")
    assert chromium.requested_urls(browser) == {url, f"{url}generate"}
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.scripts.length") == 1


@pytest.mark.slow
def test_a_prompt_that_is_too_long_is_one_message(browser, url):
    keys = chromium.keys()
    chromium.open_form(browser, url)
    chromium.press(browser, "The quick " * 60, keys.ENTER)
    chromium.wait(browser, WAITS)
    status = browser.execute_script(STATUS)
    assert "must fit into the model's 128 positions" in status
    assert browser.execute_script(TEXT) == ""


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_its_window_and_names_its_entries(browser, url, width):
    keys = chromium.keys()
    chromium.set_width(browser, width)
    chromium.open_form(browser, url)
    chromium.press(browser, "x" * 60, keys.ENTER)
    chromium.wait(browser, WAITS)
    assert "xxx" in browser.execute_script(TEXT)
    size = "const root = document.documentElement; return [{}]"
    whole, window = browser.execute_script(
        size.format("root.scrollWidth, root.clientWidth")
    )
    assert whole <= window
    unnamed = browser.execute_script(
        "return [...document.querySelectorAll('input, textarea')].filter("
        "entry => !entry.labels.length || !document.getElementById("
        "entry.getAttribute('aria-describedby'))).map(entry => entry.id)"
    )
    assert unnamed == []


def test_a_port_in_use_is_one_message():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = programs.run("trainer.demo", "--workdir=run", f"--port={port}")
    assert_refused(process, "`--port`", str(port), "in use", "Use another")
