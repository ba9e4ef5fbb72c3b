"""Chromium, driven by chromedriver, for the tests of pages."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM, CHROMEDRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"


def start(profile: pathlib.Path) -> Iterator[Any]:
    """Yields a browser, and ends it; skips the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    for program in (CHROMIUM, CHROMEDRIVER):
        if not pathlib.Path(program).exists():
            pytest.skip(f"{program} is not on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for name in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        f"user-data-dir={profile}",
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


def set_width(browser: Any, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def requested_urls(browser: Any) -> set[str]:
    """What was asked for since the last call, without what a page holds itself."""
    messages = [
        json.loads(e["message"])["message"] for e in browser.get_log("performance")
    ]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    urls = {request["request"]["url"] for request in sent}
    return {url for url in urls if not url.startswith("data:")}


def keys() -> Any:
    from selenium.webdriver.common.keys import Keys

    return Keys


def open_form(browser: Any, url: str) -> None:
    """Opens a page, and waits for the focus, which comes after the page."""
    browser.get(url)
    entry = "document.querySelector('[autofocus]')"
    wait(browser, f"return {entry} && document.activeElement === {entry}")


def press(browser: Any, *keys: str) -> None:
    """Types into whatever has the focus."""
    browser.switch_to.active_element.send_keys(*keys)


def tab_to(browser: Any, name: str) -> None:
    """Presses Tab until an element has the focus."""
    for _ in range(30):
        if browser.switch_to.active_element.get_attribute("id") == name:
            return
        press(browser, keys().TAB)
    raise AssertionError(f"Tab does not reach {name}")


def wait(browser: Any, script: str) -> None:
    """Waits until a script returns true."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 60, 0.02).until(lambda b: b.execute_script(script))
