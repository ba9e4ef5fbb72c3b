"""The page of `trainer.demo`: who may ask, what is refused, when work ends."""

import functools
import http.client
import json
import threading
import time
import urllib.parse

import pytest
from transformers import PreTrainedTokenizerFast

from tests import chromium
from tests.conftest import VOCABULARY_SIZE, _tokenizer, tiny_model
from trainer.generation import continuation, web_page
from trainer.generation.sampling import Sampler
from trainer.generation.settings import NUMBERS, Settings
from trainer.models.gpt2.architecture import ARCHITECTURE as GPT2

SHORT = Settings(max_new_tokens=4, min_new_tokens=4)


@pytest.fixture(scope="module")
def create_sampler():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(VOCABULARY_SIZE), eos_token="<|endoftext|>"
    )
    gpt2 = tiny_model(n_positions=64, n_layer=1)
    return functools.partial(Sampler, GPT2, gpt2, tokenizer, padding_text="<b>&</b>")


@pytest.fixture(scope="module")
def server(create_sampler):
    made = []

    def create(*arguments, **keywords):
        made.append(create_sampler(*arguments, **keywords))
        return made[-1]

    server = web_page.Server(0)
    server.made = made
    create = functools.partial(create, padding_text="<b>&</b>")
    thread = threading.Thread(target=server.serve, args=(create, "<i>run</i>"))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def request(server, method, path="/", body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    connection.request(method, path, body, headers)
    return connection.getresponse()


def generate(server, **values):
    values = {"max_new_tokens": 4, "min_new_tokens": 4} | values
    answer = request(server, "POST", "/generate", urllib.parse.urlencode(values))
    assert answer.status == 200
    return [json.loads(line) for line in answer.read().splitlines()]


@pytest.mark.usefixtures("slowly")
def test_a_text_comes_in_pieces_with_its_tokens(server, create_sampler):
    """Also from two browsers at once, of which one waits."""
    generate(server)  # makes the sampler that both use
    results = {}

    def ask(seed):
        results[seed] = generate(server, prompt="a\nb", seed=seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in (0, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, (*pieces, end) in results.items():
        assert end == {"wrong": ""}
        ((expected,),) = create_sampler(SHORT, padding_text="")(["a\nb"], seed=seed)
        assert "".join(piece["text"] for piece in pieces) == expected
        counts = [piece["tokens"] for piece in pieces]
        assert counts == sorted(counts)
        assert (counts[0], counts[-1]) == (0, 4)
    assert results[0] != results[5]


def test_settings_reach_the_sampler(server):
    numbers = {"top_k": 3, "temperature": 0.5, "repetition_penalty": 1.5, "seed": 7}
    texts = {"stop": "x y\n\\n\\n\n\n", "bad_words": "q", "padding_text": "p"}
    count = len(server.made)
    *_, end = generate(server, document="on", **numbers, **texts)
    assert end == {"wrong": ""}
    (sampler,) = server.made[count:]
    del numbers["seed"]
    words = {"stop": ("x y", "\n\n"), "bad_words": ("q",)}
    assert sampler._settings == Settings(
        **numbers, **words, max_new_tokens=4, min_new_tokens=4
    )
    assert len(sampler._prefix) == 2  # the padding text and the start of a document


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_p": "1.5"}, "in the range [0.0, 1.0]. Received: '1.5'"),
        ({"temperature": "nan"}, "`--temperature` must be a number that float32 holds"),
        ({"temperature": "x"}, "`temperature` must be a non-negative number."),
        ({"top_k": "2.5"}, "`top_k` must be an integer in the range"),
        ({"top_k": str(2**31)}, "[0, 2147483647]"),
        ({"seed": "-1"}, "`seed`"),
        ({"no_repeat_ngram_size": "2000"}, "[0, 1024]"),
        ({"typical_p": "0"}, "must be above 0"),
        ({"min_new_tokens": "9"}, "at most `--max_new_tokens`"),
        ({"max_new_tokens": "9" * 30}, "the model's 64 positions"),
        ({"num_beams": "2"}, "excludes `--num_beams`"),
    ],
)
def test_what_cannot_be_is_one_message(server, values, message):
    *_, end = generate(server, prompt="a", **values)
    assert message in end["wrong"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000"}, 200),  # forwarded by ssh
        ({"Host": "evil.example"}, 403),  # a name that leads to 127.0.0.1
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "["}, 403),
    ],
)
def test_other_sites_are_refused(server, headers, status):
    assert request(server, "GET", **headers).status == status
    if status != 200:
        assert request(server, "POST", "/generate", "a=b", **headers).status == status


@pytest.mark.parametrize("length", ["x", "-1", "9" * 8, "9" * 5000])
def test_a_request_without_a_sensible_length_is_refused(server, length):
    answer = request(server, "POST", "/generate", "", **{"Content-Length": length})
    assert answer.status == 400


def test_the_page_has_every_setting_and_no_markup_of_a_text(server):
    answer = request(server, "GET")
    page = answer.read().decode()
    for name in NUMBERS.keys() - {"num_beams"} | {"stop", "bad_words", "document"}:
        assert page.count(f'name="{name}"') == page.count(f'<label for="{name}"') == 1
    assert 'max="1.0"' in page
    assert "&lt;i&gt;run&lt;/i&gt;" in page
    assert "&lt;b&gt;&amp;&lt;/b&gt;" in page
    assert "<i>" not in page
    assert "//" not in page.replace("\n//", "").split("<script")[0]
    assert request(server, "GET", "/other").status == 404
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


@pytest.fixture
def slowly(monkeypatch):
    """Each token takes a while."""
    add = continuation.Continuation.add

    def add_slowly(self, token):
        time.sleep(0.05)
        return add(self, token)

    monkeypatch.setattr(continuation.Continuation, "add", add_slowly)


def num_generated(server, max_new_tokens):
    """How many tokens there were, after the text that grows has ended."""
    generate(server, prompt="b")  # waits for its turn
    (sampler,) = (
        s for s in server.made if s._settings.max_new_tokens == max_new_tokens
    )
    return sampler.num_generated


@pytest.mark.usefixtures("slowly")
def test_a_browser_that_leaves_ends_the_work(server, capfd):
    values = {"max_new_tokens": 60, "min_new_tokens": 60, "prompt": "a"}
    body = urllib.parse.urlencode(values)
    answer = request(server, "POST", "/generate", body)
    answer.readline()
    answer.close()
    assert num_generated(server, 60) < 20
    assert "Traceback" not in capfd.readouterr().err


@pytest.fixture
def browser(tmp_path):
    yield from chromium.start(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("slowly")
def test_the_stop_button_ends_the_work_and_another_text_can_grow(server, browser):
    keys = chromium.keys()
    chromium.open_form(browser, server.url)
    for name in ("max_new_tokens", "min_new_tokens"):
        chromium.tab_to(browser, name)
        chromium.press(browser, keys.CONTROL, "a", keys.NULL, "50")
    chromium.press(browser, keys.ENTER)
    text, status, stop = (
        f"document.getElementById('{name}')"
        for name in ("text", "status", "stop-button")
    )
    chromium.wait(browser, f"return {text}.textContent.length > 2")
    browser.execute_script(f"{stop}.focus()")
    chromium.press(browser, keys.ENTER)
    chromium.wait(browser, f"return {stop}.ariaDisabled === 'true'")
    assert num_generated(server, 50) < 40
    assert "tokens/s" in browser.execute_script(f"return {status}.textContent")
    # Two in a row: the first ends at once.
    browser.execute_script("document.querySelector('form button').focus()")
    chromium.press(browser, keys.ENTER, keys.ENTER)
    chromium.wait(browser, f"return {stop}.ariaDisabled === 'true'")
    assert browser.execute_script(f"return {status}.textContent").startswith("50 ")
    sampler = next(s for s in server.made if s._settings.max_new_tokens == 50)
    assert sampler.num_generated < 50 + 45

    browser.execute_cdp_cmd("Network.enable", {})
    gone = {"offline": True, "latency": 0, "downloadThroughput": 0}
    gone["uploadThroughput"] = 0
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", gone)
    chromium.press(browser, keys.ENTER)
    chromium.wait(browser, f"return {stop}.ariaDisabled === 'true'")
    message = browser.execute_script(f"return {status}.textContent")
    assert message == "The server did not finish. Its terminal says why."
