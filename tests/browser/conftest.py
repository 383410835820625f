"""A real Chromium, and a demo for it to look at."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from tests.process.conftest import killed_at_end, service, short_path
from tests.process.running import COMMAND, LOOPBACK, Service, environment, wait_for

__all__ = ["service"]


class Device(TypedDict):
    """What a page is looked at on."""

    width: int
    height: int
    deviceScaleFactor: int
    mobile: bool


_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
PHONE: Device = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
DESK: Device = {"width": 1280, "height": 1000, "deviceScaleFactor": 1, "mobile": False}


class Browser(Chrome):
    """Chromium, and what the tests ask of a page as a whole."""

    def become(self, device: Device) -> None:
        self.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**device})
        self.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": device["mobile"]})

    def width(self) -> int:
        """Return how wide the page is, whatever of it the window shows."""
        return int(self.execute_script("return document.documentElement.scrollWidth"))

    def requested(self) -> set[str]:
        """Return the addresses of everything that was asked for since the last call."""
        events = (json.loads(entry["message"])["message"] for entry in self._log("performance"))
        return {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}

    def _log(self, name: str) -> Iterator[dict[str, Any]]:
        yield from self.get_log(name)  # type: ignore[no-untyped-call]

    def complaints(self) -> list[str]:
        """Return what the console says went wrong since the last call, refusals of the policy included."""
        return [entry["message"] for entry in self._log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("there is no chromium, or no chromedriver (Debian: chromium, chromium-driver)")
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = Browser(options=options, service=ChromeService(executable_path=driver))
    try:
        browser.become(DESK)
        browser.get("about:blank")
        # What the browser's own first page asked for.
        browser.requested()
        yield browser
    finally:
        browser.quit()


@pytest.fixture(scope="session")
def demo() -> Iterator[Service]:
    with short_path() as path:
        demo = Service([COMMAND, "demo", "--bind", f"{LOOPBACK}:0"], environment(), path, cwd=path)
        with killed_at_end([demo]):
            wait_for(lambda: "Ctrl-C" in demo.out, lambda: demo.process.poll() is not None, demo)
            yield demo
            demo.end()
