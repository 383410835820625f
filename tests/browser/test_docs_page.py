"""/docs in a real browser: what a newcomer, an integrator, a keyboard and a phone find there."""

import json
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.expected_conditions import element_to_be_clickable
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.browser.conftest import resize
from tests.factories import Organization
from tests.process.running import PATIENCE, Service

EXECUTE = ".opblock.is-open button.execute"
ANSWER = ".live-responses-table tbody tr.response"


def shown(browser: Chrome, selector: str) -> WebElement:
    return WebDriverWait(browser, PATIENCE).until(element_to_be_clickable((By.CSS_SELECTOR, selector)))


def answer(browser: Chrome) -> tuple[str, Any]:
    """Return the status and the document that the page shows for the request that was tried."""
    row = shown(browser, ANSWER)
    status = row.find_element(By.CSS_SELECTOR, ".response-col_status").text.split()[0]
    # Not `text`, which asks the browser of each coloured word whether it can be seen.
    return status, json.loads(
        str(row.find_element(By.CSS_SELECTOR, ".highlight-code code").get_property("textContent"))
    )


def fill(browser: Chrome, selector: str, text: str) -> None:
    field = shown(browser, selector)
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(text)


def log(browser: Chrome, name: str) -> list[dict[str, Any]]:
    return list(browser.get_log(name))  # type: ignore[no-untyped-call]


def open_docs(browser: Chrome, service: Service) -> None:
    browser.get(service.url("/docs"))
    shown(browser, EXECUTE)


@pytest.mark.parametrize(("width", "height"), [(1200, 900), (390, 844)], ids=["desk", "phone"])
def test_in_the_demo_the_first_click_shows_cases(browser: Chrome, demo: Service, width: int, height: int) -> None:
    resize(browser, width, height)
    open_docs(browser, demo)
    shown(browser, EXECUTE).click()
    status, document = answer(browser)
    assert status == "200"
    assert len(document["results"]) == 18
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert [entry["message"] for entry in log(browser, "browser") if entry["level"] == "SEVERE"] == []


def test_in_the_demo_the_keyboard_is_enough(browser: Chrome, demo: Service) -> None:
    open_docs(browser, demo)
    for _ in range(100):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        if browser.switch_to.active_element.text == "Execute":
            break
    focused = browser.switch_to.active_element
    assert focused.value_of_css_property("outline-style") == "solid"
    focused.send_keys(Keys.ENTER)
    assert answer(browser)[0] == "200"


def test_nothing_is_asked_for_elsewhere(browser: Chrome, demo: Service) -> None:
    open_docs(browser, demo)
    shown(browser, EXECUTE).send_keys(Keys.ENTER)
    answer(browser)
    events = [json.loads(entry["message"])["message"] for entry in log(browser, "performance")]
    requests = [event["params"]["request"] for event in events if event["method"] == "Network.requestWillBeSent"]
    asked = [urlsplit(request["url"]) for request in requests]
    paths = {url.path for url in asked if url.scheme == "http"}
    assert paths > {"/docs", "/docs/page.js", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/openapi.json"}
    assert {url.netloc for url in asked if url.scheme == "http"} == {f"127.0.0.1:{demo.port}"}
    assert {url.scheme for url in asked} <= {"http", "data"}


def test_an_integrator_authorizes_and_sees_the_cases(
    browser: Chrome, service: Service, organization: Organization
) -> None:
    visitor = organization.visitor()
    cases = visitor.cases(3)
    open_docs(browser, service)
    shown(browser, "button.authorize").click()
    shown(browser, "#auth-bearer-value")
    given = {"apiToken": organization.token, "visitorJwt": organization.jwt(visitor.external_id)}
    for form in browser.find_elements(By.CSS_SELECTOR, ".auth-container"):
        text = given.get(form.find_element(By.CSS_SELECTOR, "h4 code").text)
        if text is not None:
            form.find_element(By.CSS_SELECTOR, "input").send_keys(text)
            form.find_element(By.CSS_SELECTOR, "button.authorize").click()
    shown(browser, ".btn-done").click()
    fill(browser, "[data-param-name=organization_id] input", str(organization.id))
    statuses = Select(shown(browser, "[data-param-name=status] select"))
    for status in ("Open", "Pending"):
        statuses.select_by_value(status)
    shown(browser, EXECUTE).click()
    status, document = answer(browser)
    assert status == "200"
    assert [case["id"] for case in document["results"]] == [str(case) for case in cases]


def test_without_a_token_it_says_so(browser: Chrome, service: Service) -> None:
    open_docs(browser, service)
    shown(browser, EXECUTE).click()
    status, document = answer(browser)
    assert (status, document["code"]) == ("401", "authentication_required")
    assert "cst_" not in browser.page_source.replace("cst_…", "")
