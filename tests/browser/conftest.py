"""A real Chromium, which reaches nothing but this machine, and a demo for it to look at."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver

from tests.process.conftest import killed_at_end, service, short_path
from tests.process.running import COMMAND, LOOPBACK, Service, environment, wait_for

__all__ = ["service"]

ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@pytest.fixture(scope="session")
def chromium() -> Iterator[webdriver.Chrome]:
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed (Debian: apt-get install chromium chromium-driver)")
    profile = tempfile.mkdtemp(prefix="cases-chromium-")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()
        shutil.rmtree(Path(profile), ignore_errors=True)


@pytest.fixture
def browser(chromium: webdriver.Chrome) -> Iterator[webdriver.Chrome]:
    """A tab of a desktop's size in light colours, with no cookies, no storage, and nothing in the logs."""
    first = chromium.current_window_handle
    chromium.switch_to.new_window("tab")
    chromium.execute_cdp_cmd("Network.enable", {})
    chromium.execute_cdp_cmd("Network.clearBrowserCookies", {})
    resize(chromium, 1200, 900)
    prefer(chromium, "light")
    for name in ("browser", "performance"):
        chromium.get_log(name)  # type: ignore[no-untyped-call]
    yield chromium
    chromium.close()
    chromium.switch_to.window(first)


def resize(browser: webdriver.Chrome, width: int, height: int) -> None:
    """Give the page a viewport; a narrow one is a phone's."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def prefer(browser: webdriver.Chrome, scheme: str) -> None:
    """Prefer light or dark, and nothing that moves."""
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    given = [{"name": name, "value": value} for name, value in features.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": given})


@pytest.fixture(scope="session")
def demo() -> Iterator[Service]:
    """A demo as a newcomer starts it, which has printed its lines."""
    with short_path() as path:
        demo = Service([COMMAND, "demo", "--bind", f"{LOOPBACK}:0"], environment(), path, cwd=path)
        with killed_at_end([demo]):
            wait_for(lambda: "Ctrl-C" in demo.out, lambda: demo.process.poll() is not None, demo)
            yield demo
            demo.end()
