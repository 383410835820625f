"""The portal in a real browser: what its customer sees, and what nobody does."""

import base64
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

from tests.browser.conftest import prefer, resize
from tests.browser.portal_world import AGENT_AVATAR, AGENT_EMAIL, EVIL, LONG, Case, Portal, running_portal
from tests.process.running import PATIENCE, wait_for

# axe-core 4.14.1 as npm has it, under the MPL 2.0.
AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text()
PHONE = (390, 844)
DESKTOP = (1200, 900)


@pytest.fixture(scope="module")
def portal() -> Iterator[Portal]:
    with running_portal() as portal:
        yield portal


class Page:
    """The portal as someone at the browser sees it."""

    def __init__(self, browser: webdriver.Chrome, portal: Portal) -> None:
        self.browser, self.portal = browser, portal

    def open(self, hash_: str = "", *, visitor: str = "ada") -> None:
        self.browser.get(self.portal.url)
        if visitor != "ada":
            self.switch(visitor)
        if hash_:
            self.browser.get(f"{self.portal.url}{hash_}")
        self.settled()

    def switch(self, visitor: str) -> None:
        Select(self.one("#visitor")).select_by_value(visitor)
        self.one(".demo button").click()
        name = "return document.querySelector('.masthead strong')?.textContent"
        wait_for(lambda: self.run(name) == visitor)

    def settled(self) -> None:
        wait_for(lambda: not self.all("[aria-busy=true], .placeholder"), story=self)

    def one(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    @property
    def text(self) -> str:
        text: str = self.run("return document.body.innerText")
        return text

    def __str__(self) -> str:
        return self.text

    def numbers(self) -> list[str]:
        """Return the numbers of the cases that are listed, from the top."""
        script = "return [...document.querySelectorAll('.case-number')].map((e) => e.textContent.slice(1))"
        numbers: list[str] = self.run(script)
        return numbers

    def row(self, case: Case) -> str:
        """Return what a case's row says, read in one step, since the page may draw the row anew meanwhile."""
        text: str = self.run(f"return document.querySelector(\".case:has(a[href$='{case.id}'])\").innerText")
        return text

    def show_details(self, case: Case) -> WebElement:
        self.one(f"a[href$='{case.id}']").click()
        return self.details()

    def details(self) -> WebElement:
        dialog = wait_for(lambda: next(iter(self.all("dialog[open]")), None), story=self)
        self.settled()
        return dialog

    def press(self, *keys: str) -> None:
        self.browser.switch_to.active_element.send_keys(*keys)

    def focused(self) -> str | None:
        found: str | None = self.run("const e = document.activeElement; return e.id || e.getAttribute('href')")
        return found

    def scroll_until(self, is_reached: Callable[[], bool]) -> None:
        def scroll() -> bool:
            self.run("scrollTo(0, document.documentElement.scrollHeight)")
            return is_reached()

        wait_for(scroll, story=self)

    def scroll_to_the_end(self) -> None:
        """Scroll until nothing more comes."""
        self.scroll_until(lambda: re.fullmatch(r"\d+ cases?", self.one("#progress").text) is not None)

    def assert_accessible(self) -> None:
        # axe's own script is not the page's: it makes elements that the page's policy would not let it make.
        self.run(AXE)
        script = (
            "axe.run({resultTypes: ['violations']}).then(arguments[0], (e) => arguments[0]({violations: [`${e}`]}))"
        )
        found = self.browser.execute_async_script(script)
        assert found["violations"] == [], json.dumps(found["violations"], indent=1)
        assert len(found["passes"]) > 10


@pytest.fixture
def page(browser: webdriver.Chrome, portal: Portal) -> Page:
    return Page(browser, portal)


def numbers_of(cases: list[Case]) -> list[str]:
    return [case.number for case in cases]


def test_the_open_cases_are_listed_newest_first(page: Page) -> None:
    page.open()
    assert page.numbers() == numbers_of(page.portal.world.open)
    assert page.one("#progress").text == "6 cases"


def test_a_row_says_what_matters_at_a_glance(page: Page) -> None:
    page.open()
    row = page.row(page.portal.world.waiting)
    for shown in ("A-57", "Pending", "Waiting for us", "via Ada by phone"):
        assert shown in row
    for shown in ("Not assigned yet", "Without a subject", "Sep 19, 2015"):
        assert shown in row
    assert re.search(r"Updated \d+ years ago", row)
    other = page.row(page.portal.world.evil)
    assert "In progress" in other
    assert "Handled by Billing team" in other
    assert "Waiting" not in other


def test_what_is_the_companys_own_does_not_reach_the_browser(page: Page) -> None:
    page.open()
    page.show_details(page.portal.world.waiting)
    read = "const [url, done] = arguments; fetch(url).then(async (answer) => done(await answer.text()))"
    seen = [page.text, *(page.browser.execute_async_script(read, url) for url in fetched(page) if "/api/" in url)]
    assert len(seen) == 5
    for internal in ("priority", "Low", "unread", "Inspection", "funnel", "Stage"):
        assert internal not in "\n".join(seen)


def test_the_header_counts_what_there_is(page: Page) -> None:
    page.open()
    assert page.one("#summary").text.split("\n") == [
        "6", "Open", "1", "In progress", "1", "Waiting for us", "47", "Closed",
    ]  # fmt: skip


def test_each_count_leads_to_its_cases(page: Page) -> None:
    world = page.portal.world
    page.open()
    for name, cases in {"progress": [world.evil], "waiting": [world.waiting], "open": world.open}.items():
        page.one(f"#tab-{name}").click()
        page.settled()
        assert page.numbers() == numbers_of(cases)
        assert page.browser.current_url.endswith(f"#{name}")
        assert page.one(f"#tab-{name}").get_attribute("aria-selected") == "true"


def test_a_closed_case_is_not_counted_as_waiting(page: Page) -> None:
    case = page.portal.world.closed[0]
    with page.portal.world.changed("update cases set is_waiting = true where id = %s", case.id):
        page.open("#waiting")
        assert page.numbers() == numbers_of([page.portal.world.waiting])
        assert page.one("#tab-waiting .tile-count").text == "1"
        page.open(f"#closed/{case.id}")
        assert "Waiting" not in page.details().text


def test_web_addresses_in_a_text_are_links(page: Page) -> None:
    text = (
        "See https://example.com/a_(b)?c=d&e=%20f. Or (http://example.org/x), or HTTPS://EXAMPLE.NET!"
        " Not javascript:alert(1), ftp://example.com, https://bank.example@evil.example/ or https://"
        ' "https://example.com/<script>window.hacked=1</script>"'
    )
    case = page.portal.world.zoes
    with page.portal.world.changed("update cases set description = %s where id = %s", text, case.id):
        page.open(visitor="zoe")
        details = page.show_details(case)
        assert text in details.text
        links = details.find_elements(By.CSS_SELECTOR, ".description a")
        assert [link.text for link in links] == [
            "https://example.com/a_(b)?c=d&e=%20f",
            "http://example.org/x",
            "HTTPS://EXAMPLE.NET",
            "https://example.com/",
        ]
        for link in links:
            assert set(str(link.get_attribute("rel")).split()) >= {"noopener", "noreferrer", "nofollow"}
            assert link.get_attribute("target") == "_blank"
        page.assert_accessible()
    assert page.run("return window.hacked") is None


def look_again(page: Page) -> None:
    """Do what the page takes for somebody's return to its tab."""
    page.run("document.dispatchEvent(new Event('visibilitychange'))")


def statuses(page: Page) -> list[int]:
    """Return the status of each answer of the backend so far."""
    script = "return performance.getEntriesByType('resource').filter((e) => e.name.includes('/api/')).map("
    found: list[int] = page.run(f"{script}(e) => e.responseStatus)")
    return found


def test_what_has_changed_is_shown_without_a_reload(page: Page) -> None:
    world = page.portal.world
    page.open(visitor="zoe")
    page.run("window.kept = true")
    page.run("document.querySelector('.case a').focus()")
    change = "update cases set subject = 'Renamed', is_waiting = true, updated_at = now() where id = %s"
    with world.changed(change, world.zoes.id):
        look_again(page)
        wait_for(lambda: "Renamed" in page.row(world.zoes), story=page)
        assert "Waiting for us" in page.row(world.zoes)
        assert page.one("#tab-waiting .tile-count").text == "1"
        assert page.focused() == f"#open/{world.zoes.id}"
        details = page.show_details(world.zoes)
        with world.changed("update cases set description = 'Anew' where id = %s", world.zoes.id):
            look_again(page)
            wait_for(lambda: "Anew" in details.text, story=page)
    assert page.run("return window.kept")


def test_a_longer_list_keeps_its_length_when_a_case_comes(page: Page) -> None:
    world = page.portal.world
    page.open("#closed")
    page.scroll_to_the_end()
    change = "update cases set status = 'Closed', closed_at = now() where id = %s"
    with world.changed(change, world.open[-1].id):
        look_again(page)
        wait_for(lambda: len(page.numbers()) == 48, story=page)
        assert page.one("#progress").text == "48 cases"


def test_what_has_not_changed_is_not_sent_again(page: Page) -> None:
    page.open()
    page.show_details(page.portal.world.open[0])
    before = statuses(page)
    assert before == [200] * 4
    look_again(page)
    wait_for(lambda: len(statuses(page)) == len(before) + 4, story=page)
    assert statuses(page)[4:] == [304] * 4


def test_it_refreshes_itself_less_often_in_a_hidden_tab(page: Page) -> None:
    script = """
        window.waits = [];
        const set = window.setTimeout;
        window.setTimeout = (then, wait) => { waits.push(wait); return set(then, wait); };
        window.isHidden = false;
        Object.defineProperty(document, 'hidden', { get: () => window.isHidden });
    """
    page.browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    page.open()
    assert page.run("return waits") == [30_000]
    page.run("window.isHidden = true")
    look_again(page)
    assert page.run("return waits") == [30_000, 300_000]


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_scrolling_shows_every_closed_case_once(page: Page, size: tuple[int, int]) -> None:
    resize(page.browser, *size)
    page.open("#closed")
    assert 0 < len(page.numbers()) < 47
    page.scroll_to_the_end()
    assert page.numbers() == numbers_of(page.portal.world.closed)
    assert not page.one("#more").is_displayed()


def test_without_scrolling_a_button_loads_more_from_the_keyboard(page: Page) -> None:
    inert = "window.IntersectionObserver = class { observe() {} unobserve() {} }"
    page.browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": inert})
    page.open("#closed")
    for shown in (10, 20, 30, 40):
        assert len(page.numbers()) == shown
        wait_for(lambda shown=shown: page.one("#progress").text == f"{shown} of 47 cases")  # type: ignore[misc]
        page.run("document.querySelector('#more').focus()")
        page.press(Keys.ENTER)
        wait_for(lambda shown=shown: len(page.numbers()) > shown, story=page)  # type: ignore[misc]
    assert page.numbers() == numbers_of(page.portal.world.closed)
    assert page.focused() == f"#closed/{page.portal.world.closed[40].id}"


def test_the_tabs_are_operated_by_the_keyboard(page: Page) -> None:
    page.open()
    page.one("#tab-open").click()
    for name in ("progress", "waiting"):
        page.press(Keys.ARROW_RIGHT)
        page.settled()
        assert page.focused() == f"tab-{name}"
    page.press(Keys.ARROW_RIGHT)
    page.settled()
    assert (page.focused(), page.one("#tab-closed").get_attribute("aria-selected")) == ("tab-closed", "true")
    assert page.numbers()[:5] == numbers_of(page.portal.world.closed)[:5]
    assert page.one("#panel").get_attribute("aria-labelledby") == "tab-closed"
    page.press(Keys.HOME)
    page.settled()
    assert (page.focused(), page.numbers()) == ("tab-open", numbers_of(page.portal.world.open))
    assert [tab.get_attribute("tabindex") for tab in page.all("[role=tab]")] == ["0", "-1", "-1", "-1"]


def test_a_case_opens_from_the_keyboard_and_escape_leads_back_to_its_row(page: Page) -> None:
    page.open()
    case = page.portal.world.open[1]
    page.run("document.querySelector(arguments[0]).focus()", f"a[href$='{case.id}']")
    page.press(Keys.ENTER)
    details = page.details()
    assert page.focused() == "details-title"
    for shown in (f"Case #{case.number}", "WhatsApp", "Billing team", "Ada by phone", "It\nbegan so."):
        assert shown in details.text
    for _ in range(6):
        page.press(Keys.TAB)
        assert page.run("return document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    page.press(Keys.ESCAPE)
    wait_for(lambda: not page.all("dialog[open]"))
    assert page.focused() == f"#open/{case.id}"
    wait_for(lambda: page.browser.current_url.partition("#")[2] in ("", "open"), story=page.browser.current_url)


def test_back_closes_a_case_and_forward_opens_it_again(page: Page) -> None:
    page.open("#closed")
    case = page.portal.world.closed[0]
    assert "Closed\nAugust" not in page.text
    assert "What happened" in page.show_details(case).text
    page.browser.back()
    wait_for(lambda: not page.all("dialog[open]"))
    assert page.numbers()[0] == case.number
    page.browser.forward()
    assert case.number in page.details().text
    page.one("dialog .close").click()
    wait_for(lambda: page.browser.current_url.endswith("#closed"))


def test_a_link_leads_to_a_case(page: Page) -> None:
    case = page.portal.world.closed[40]
    page.open(f"#closed/{case.id}")
    assert f"Case #{case.number}" in page.details().text
    page.one("dialog .close").click()
    wait_for(lambda: page.browser.current_url.endswith("#closed"))
    assert page.one("#tab-closed").get_attribute("aria-selected") == "true"


def test_another_visitors_case_is_not_shown(page: Page) -> None:
    page.open(f"#open/{page.portal.world.zoes.id}")
    assert "There is no such case among yours." in page.details().text
    assert page.portal.world.zoes.number not in page.browser.page_source


def test_who_is_signed_in_decides_what_is_shown(page: Page) -> None:
    page.open(visitor="zoe")
    assert page.numbers() == [page.portal.world.zoes.number]
    assert page.one(".masthead strong").text == "zoe"
    page.switch("ada")
    page.settled()
    assert page.numbers() == numbers_of(page.portal.world.open)


@pytest.mark.parametrize("visitor", ["newcomer", "stranger"])
def test_without_cases_the_page_says_so(page: Page, visitor: str) -> None:
    page.open(visitor=visitor)
    assert "No open cases" in page.one("#notice").text
    page.one("#tab-closed").click()
    page.settled()
    assert "No closed cases" in page.one("#notice").text
    assert page.one("#summary").text.split("\n")[0::2] == ["0"] * 4
    assert not page.one("#notice button").is_displayed()


def test_while_the_database_is_away_the_page_says_so_and_can_be_tried_again(page: Page) -> None:
    world = page.portal.world
    page.open("#closed")
    world.stop_database()
    try:
        page.scroll_until(lambda: page.one("#notice").is_displayed())
        assert "cannot be shown right now" in page.one("#notice[role=alert]").text
        assert page.numbers() == numbers_of(world.closed)[: len(page.numbers())]
        page.one("#notice button").click()
        wait_for(lambda: page.one("#notice button").is_displayed())
        page.assert_accessible()
        page.browser.refresh()
        page.settled()
        assert page.numbers() == []
        assert "try again in a moment" in page.one("#notice").text
        page.browser.get(f"{page.portal.url}#closed/{world.closed[0].id}")
        assert "This case cannot be shown right now." in page.details().text
    finally:
        world.start_database()
    page.portal.service.wait_until_ready()
    page.one("dialog .notice button").click()
    wait_for(lambda: "What happened" in page.one("dialog").text, story=page)
    page.one("dialog .close").click()
    wait_for(lambda: not page.all("dialog[open]"))
    page.one("#notice button").click()
    wait_for(lambda: page.numbers() != [], story=page)
    page.scroll_to_the_end()
    assert page.numbers() == numbers_of(world.closed)
    assert "47" in page.one("#summary").text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_axe_finds_nothing(page: Page, scheme: str, size: tuple[int, int]) -> None:
    resize(page.browser, *size)
    prefer(page.browser, scheme)
    page.open()
    page.assert_accessible()
    page.show_details(page.portal.world.waiting)
    page.assert_accessible()
    page.open("#closed")
    page.assert_accessible()
    page.open(visitor="newcomer")
    page.assert_accessible()


def test_dark_is_dark_and_light_is_light(page: Page) -> None:
    def lightness() -> int:
        page.open()
        colour = page.run("return getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    assert lightness() > 600
    prefer(page.browser, "dark")
    assert lightness() < 150


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_shows_it_without_scrolling_sideways(page: Page, width: int) -> None:
    resize(page.browser, width, 700)
    page.open()
    overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert LONG in page.text
    assert page.run(overflow) == 0
    page.show_details(page.portal.world.open[1])
    assert page.run(overflow) == 0
    assert page.run("const d = document.querySelector('dialog'); return d.scrollWidth - d.clientWidth") == 0
    small = "return [...document.querySelectorAll('main button, dialog button')].filter((b) => b.offsetHeight).map("
    heights = page.run(f"{small}(b) => Math.min(b.offsetHeight, b.offsetWidth))")
    assert min(heights) >= 44


def test_what_customers_wrote_is_text(page: Page) -> None:
    page.open()
    case = page.portal.world.evil
    assert EVIL in page.row(case)
    details = page.show_details(case)
    assert details.text.count(EVIL) == 2
    assert page.all("img, iframe, body script, [style], [onerror]") == []
    assert page.run("return window.hacked") is None


class Talk:
    """A visitor's only case, for one test."""

    def __init__(self, page: Page, portal: Portal) -> None:
        self.page, self.portal = page, portal
        self.visitor, self.case = next(portal.world.fresh)

    def open(self) -> None:
        self.page.open(visitor=self.visitor)
        self.page.show_details(self.case)
        wait_for(lambda: self.page.one("#conversation").is_displayed(), story=self.page)

    def shown(self) -> list[tuple[str, str]]:
        """Return the side and the text of each message that is shown, from the top."""
        script = """return [...document.querySelectorAll('.message')].map(
            (e) => [e.dataset.side, e.querySelector('.message-text').textContent])"""
        return [(side, text) for side, text in self.page.run(script)]

    def wait_until_shown(self, text: str) -> None:
        wait_for(lambda: text in [shown for _, shown in self.shown()], story=self.page)

    def write(self, text: str) -> None:
        self.page.one("#reply-text").send_keys(text)

    def send(self) -> None:
        self.page.one("#reply button").click()

    def send_plain(self) -> None:
        """Send the form of a page without JavaScript, and wait for the page that follows."""
        form = self.page.one("form.reply")
        self.page.one("form.reply button").click()
        wait_for(lambda: is_stale(form))

    @property
    def box(self) -> str:
        return str(self.page.one("#reply-text").get_property("value"))

    def news(self) -> str:
        """Return what a screen reader was told last."""
        return str(self.page.one("#conversation-news").get_property("textContent"))


def is_stale(element: WebElement) -> bool:
    try:
        return not element.is_enabled()
    except StaleElementReferenceException:
        return True
    except WebDriverException as error:
        # Chromium's driver says it like this while the page is being replaced.
        if "does not belong to the document" not in (error.msg or ""):
            raise
        return True


@pytest.fixture
def talk(page: Page, portal: Portal) -> Talk:
    return Talk(page, portal)


def test_a_conversation_is_shown_by_side_and_time(talk: Talk) -> None:
    talk.portal.say(talk.case, "It rains in.")
    talk.portal.answer(talk.case, "Since when?")
    talk.portal.say(talk.case, "Since Monday.")
    talk.open()
    assert talk.shown() == [("visitor", "It rains in."), ("user", "Since when?"), ("visitor", "Since Monday.")]
    names = [name.text for name in talk.page.all(".message-by strong")]
    assert names == ["You", "Billing team", "You"]
    left = [message.rect["x"] for message in talk.page.all(".message")]
    assert left[0] > left[1] < left[2]


def test_an_answer_is_written_from_the_keyboard(talk: Talk) -> None:
    talk.open()
    assert "Nothing has been said yet." in talk.page.text
    talk.page.one("#reply-text").click()
    talk.page.press("Good day", Keys.ENTER, "to you", Keys.TAB, Keys.ENTER)
    talk.wait_until_shown("Good day\nto you")
    assert talk.portal.texts(talk.case) == ["Good day\nto you"]
    wait_for(lambda: talk.box == "", story=talk.page)
    assert talk.news() == "Your message was sent."
    assert "Nothing has been said yet." not in talk.page.text
    assert "Waiting for us" in talk.page.one("#details-body").text


def test_an_agents_answer_appears_by_itself_and_is_told(talk: Talk) -> None:
    talk.open()
    talk.write("half of an ans")
    talk.portal.answer(talk.case, "We are on our way.")
    look_again(talk.page)
    talk.wait_until_shown("We are on our way.")
    assert talk.news() == "Billing team: We are on our way."
    assert talk.box == "half of an ans"
    assert talk.page.focused() == "reply-text"
    wait_for(lambda: "Pending" in talk.page.one("#details-body").text, story=talk.page)
    assert [state for state in ("log", "assertive") if talk.page.all(f"#conversation [aria-live={state}]")] == []
    assert talk.page.one("#conversation-news").get_attribute("role") == "status"


def test_an_open_conversation_is_polled_more_often_and_not_in_a_hidden_tab(talk: Talk) -> None:
    script = """
        window.waits = [];
        const set = window.setTimeout;
        window.setTimeout = (then, wait) => { waits.push(wait); return set(then, wait / 20); };
        window.isHidden = false;
        Object.defineProperty(document, 'hidden', { get: () => window.isHidden });
    """
    talk.page.browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    talk.open()
    talk.portal.answer(talk.case, "By itself")
    talk.wait_until_shown("By itself")
    assert 10_000 in talk.page.run("return waits")
    talk.page.run("window.isHidden = true; document.dispatchEvent(new Event('visibilitychange')); window.waits = []")
    talk.portal.answer(talk.case, "While nobody looks")
    wait_for(lambda: talk.page.run("return waits").count(300_000) > 0, story=talk.page)
    assert 10_000 not in talk.page.run("return waits")


def test_what_is_new_is_marked_until_it_is_read(talk: Talk) -> None:
    talk.portal.answer(talk.case, "First")
    talk.portal.answer(talk.case, "Second")
    talk.page.open(visitor=talk.visitor)
    assert "2 new messages" in talk.page.row(talk.case)
    assert talk.page.one("#new-messages").text == "2 new messages"
    assert talk.page.browser.title == "(2) Your cases"
    talk.page.show_details(talk.case)
    wait_for(lambda: talk.portal.case(talk.case)["visitor_unread_message_count"] == 0, story=talk.page)
    wait_for(lambda: talk.page.browser.title == "Your cases", story=talk.page)
    assert [mark.is_displayed() for mark in talk.page.all(".message .new")] == [True, True]
    look_again(talk.page)
    wait_for(lambda: not any(mark.is_displayed() for mark in talk.page.all(".message .new")), story=talk.page)
    talk.page.press(Keys.ESCAPE)
    wait_for(lambda: not talk.page.all("dialog[open]"))
    assert "new message" not in talk.page.text


def test_in_a_hidden_tab_nothing_is_marked_as_read(talk: Talk) -> None:
    script = "window.isHidden = false; Object.defineProperty(document, 'hidden', { get: () => window.isHidden })"
    talk.page.browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    talk.open()
    talk.page.run("window.isHidden = true")
    talk.portal.answer(talk.case, "Nobody sees this")
    talk.page.run("dispatchEvent(new HashChangeEvent('hashchange'))")
    talk.wait_until_shown("Nobody sees this")
    assert talk.portal.case(talk.case)["visitor_unread_message_count"] == 1
    talk.page.run("window.isHidden = false")
    look_again(talk.page)
    wait_for(lambda: talk.portal.case(talk.case)["visitor_unread_message_count"] == 0, story=talk.page)


def test_the_answer_keeps_its_text_through_an_outage_and_is_sent_once(talk: Talk) -> None:
    talk.open()
    talk.write("Is anybody there?")
    talk.portal.world.stop_database()
    try:
        talk.send()
        wait_for(lambda: "was not sent" in talk.page.one("#reply-error").text, story=talk.page)
        assert talk.page.one("#reply-error").get_attribute("role") == "alert"
        look_again(talk.page)
        assert talk.box == "Is anybody there?"
        talk.page.assert_accessible()
    finally:
        talk.portal.world.start_database()
    talk.portal.service.wait_until_ready()
    talk.send()
    talk.wait_until_shown("Is anybody there?")
    assert talk.portal.texts(talk.case) == ["Is anybody there?"]
    assert talk.box == ""
    assert talk.page.one("#reply-error").text == ""


def test_a_message_whose_answer_is_lost_is_said_once(talk: Talk) -> None:
    talk.open()
    talk.page.run("""
        const real = window.fetch;
        window.sent = [];
        window.fetch = async (path, options = {}) => {
            const answer = await real(path, options);
            if (options.method !== 'POST') return answer;
            sent.push(JSON.parse(options.body).id);
            if (sent.length < 3) throw new TypeError('lost');
            return answer;
        };
    """)
    talk.write("Only once")
    talk.send()
    talk.wait_until_shown("Only once")
    sent = talk.page.run("return sent")
    assert len(sent) == 3
    assert len(set(sent)) == 1
    assert talk.portal.texts(talk.case) == ["Only once"]


def test_a_draft_outlives_new_details_a_closed_dialog_and_a_reload(talk: Talk) -> None:
    talk.open()
    talk.write("Not done")
    with talk.portal.world.changed("update cases set description = 'Anew' where id = %s", talk.case.id):
        look_again(talk.page)
        wait_for(lambda: "Anew" in talk.page.one("#details-body").text, story=talk.page)
        assert (talk.box, talk.page.focused()) == ("Not done", "reply-text")
    talk.page.run("location.hash = '#open'")
    wait_for(lambda: not talk.page.all("dialog[open]"))
    talk.page.run("document.querySelector('#reply-text').value = ''")
    talk.page.show_details(talk.case)
    wait_for(lambda: talk.box == "Not done", story=talk.page)
    talk.page.browser.refresh()
    talk.page.details()
    assert talk.box == "Not done"


def test_a_case_is_closed_and_reopened_after_a_confirmation(talk: Talk) -> None:
    talk.open()
    button = talk.page.one("#change-state")
    assert button.text == "Close this case"
    button.click()
    talk.page.press(Keys.ESCAPE)
    wait_for(lambda: not talk.page.one("#confirmation").is_displayed())
    assert talk.portal.case(talk.case)["is_closed"] is False
    assert talk.page.focused() == "change-state"
    talk.page.press(Keys.ENTER)
    talk.page.assert_accessible()
    talk.page.press(Keys.TAB, Keys.ENTER)
    wait_for(lambda: button.text == "Reopen this case", story=talk.page)
    assert talk.portal.case(talk.case)["is_closed"] is True
    assert talk.page.one("#reply-hint").text == "Your message reopens this case."
    assert talk.news() == "The case is closed."
    assert talk.page.focused() == "change-state"
    talk.page.press(Keys.ENTER)
    talk.page.one("#confirm").click()
    wait_for(lambda: button.text == "Close this case", story=talk.page)
    assert talk.portal.case(talk.case)["status"] == "In Progress"


def test_older_messages_come_by_a_button_each_once(talk: Talk) -> None:
    for number in range(45):
        talk.portal.say(talk.case, f"Line {number}")
    talk.open()
    for shown in (20, 40, 45):
        wait_for(lambda shown=shown: len(talk.shown()) == shown, story=talk.page)  # type: ignore[misc]
        assert [text for _, text in talk.shown()] == [f"Line {number}" for number in range(45 - shown, 45)]
        if shown < 45:
            talk.page.run("document.querySelector('#older').focus()")
            talk.page.press(Keys.ENTER)
    assert not talk.page.one("#older").is_displayed()
    assert talk.page.focused() == "messages-scroller"


def test_when_more_than_a_page_has_come_nothing_is_left_out(talk: Talk) -> None:
    talk.portal.say(talk.case, "Before")
    talk.open()
    for number in range(25):
        talk.portal.answer(talk.case, f"Line {number}")
    look_again(talk.page)
    talk.wait_until_shown("Line 24")
    talk.page.one("#older").click()
    wait_for(lambda: len(talk.shown()) == 26, story=talk.page)
    assert [text for _, text in talk.shown()] == ["Before", *(f"Line {number}" for number in range(25))]


def test_a_private_note_reaches_the_browser_by_no_way(talk: Talk) -> None:
    talk.portal.answer(talk.case, "Good day")
    talk.portal.answer(talk.case, "Secret among agents", is_private=True)
    talk.open()
    talk.portal.answer(talk.case, "Another secret", is_private=True)
    look_again(talk.page)
    talk.page.settled()
    assert talk.shown() == [("user", "Good day")]
    read = "const [url, done] = arguments; fetch(url).then(async (answer) => done(await answer.text()))"
    urls = [*fetched(talk.page), f"{talk.portal.url}plain/cases/{talk.case.id}", f"{talk.portal.url}plain/"]
    seen = [talk.page.browser.page_source, *(talk.page.browser.execute_async_script(read, url) for url in urls)]
    assert "Good day" in "".join(seen)
    assert "ecret" not in re.sub(r"sessionStorage|<script.*?</script>", "", "".join(seen))


def test_what_is_said_is_text_with_links(talk: Talk) -> None:
    talk.portal.answer(talk.case, EVIL)
    talk.portal.say(talk.case, f"See https://example.com/a {LONG}")
    talk.open()
    assert talk.shown() == [("user", EVIL), ("visitor", f"See https://example.com/a {LONG}")]
    (link,) = talk.page.all(".message-text a")
    assert "noopener" in str(link.get_attribute("rel"))
    assert talk.page.all("img, iframe, body script, [style], [onerror]") == []
    assert talk.page.run("return window.hacked") is None
    assert talk.page.browser.get_log("browser") == []  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_axe_finds_nothing_in_a_conversation(talk: Talk, scheme: str, size: tuple[int, int]) -> None:
    resize(talk.page.browser, *size)
    prefer(talk.page.browser, scheme)
    talk.portal.say(talk.case, "Hello")
    talk.portal.answer(talk.case, "See https://example.com/")
    with talk.portal.world.changed(
        "update messages set sender_type = 'system' where text = 'Hello' and case_id = %s", talk.case.id
    ):
        talk.page.open(visitor=talk.visitor)
        talk.page.assert_accessible()
        talk.page.show_details(talk.case)
        assert talk.shown()[0] == ("system", "Hello")
        talk.page.assert_accessible()


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_shows_a_conversation_with_its_answer_box_at_hand(talk: Talk, width: int) -> None:
    resize(talk.page.browser, width, 700)
    for number in range(8):
        talk.portal.say(talk.case, f"{number} {LONG}")
    talk.portal.answer(talk.case, "Thank you.")
    talk.open()
    assert talk.page.run("const d = document.querySelector('dialog'); return d.scrollWidth - d.clientWidth") == 0
    inside = """const { top, bottom } = document.querySelector(arguments[0]).getBoundingClientRect();
        return top >= 0 && bottom <= innerHeight"""
    wait_for(lambda: talk.page.run(inside, ".message:last-child"), story=talk.page)
    assert talk.page.run(inside, "#reply button")
    talk.write("From a phone")
    talk.send()
    talk.wait_until_shown("From a phone")
    assert talk.page.run(inside, ".message:last-child")


def test_without_javascript_it_is_read_and_answered(talk: Talk) -> None:
    talk.portal.answer(talk.case, "Good day")
    talk.page.open(visitor=talk.visitor)
    browser = talk.page.browser
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(talk.portal.url)
        wait_for(lambda: browser.current_url.endswith("/plain/"))
        browser.find_element(By.LINK_TEXT, "Talk").click()
        wait_for(lambda: talk.page.all("form.reply"))
        assert "Good day" in browser.page_source
        assert "Billing team" in browser.page_source
        talk.write("By a form")
        talk.send_plain()
        assert "By a form" in browser.page_source
        assert talk.portal.texts(talk.case) == ["Good day", "By a form"]
        assert talk.portal.case(talk.case)["visitor_unread_message_count"] == 0
        browser.find_element(By.CSS_SELECTOR, ".plain-state summary").click()
        browser.find_element(By.CSS_SELECTOR, ".plain-state button").click()
        wait_for(lambda: talk.portal.case(talk.case)["is_closed"])
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_axe_finds_nothing_without_javascript(talk: Talk) -> None:
    talk.portal.answer(talk.case, "Good day")
    talk.page.open(visitor=talk.visitor)
    for path in ("plain/", f"plain/cases/{talk.case.id}", f"plain/cases/{talk.portal.world.zoes.id}"):
        talk.page.browser.get(f"{talk.portal.url}{path}")
        talk.page.assert_accessible()


def test_without_javascript_an_outage_gives_the_text_back(talk: Talk) -> None:
    talk.page.open(visitor=talk.visitor)
    talk.page.browser.get(f"{talk.portal.url}plain/cases/{talk.case.id}")
    talk.write("Do not lose this")
    talk.portal.world.stop_database()
    try:
        talk.send_plain()
        assert "not available right now" in talk.page.text
        assert talk.box == "Do not lose this"
    finally:
        talk.portal.world.start_database()
    talk.portal.service.wait_until_ready()
    talk.send_plain()
    assert talk.portal.texts(talk.case) == ["Do not lose this"]


def fetched(page: Page) -> list[str]:
    """Return the URL of everything that the page has loaded."""
    script = """return performance.getEntriesByType('navigation').concat(performance.getEntriesByType('resource'))
        .map((entry) => entry.name)"""
    urls: list[str] = page.run(script)
    return urls


def use_everything(page: Page) -> None:
    page.open("#closed")
    page.scroll_to_the_end()
    page.one("#tab-open").click()
    page.settled()
    page.show_details(page.portal.world.evil)


def test_nothing_is_loaded_from_elsewhere_and_the_policy_is_kept(page: Page) -> None:
    use_everything(page)
    assert {urlsplit(url).netloc for url in fetched(page)} == {urlsplit(page.portal.url).netloc}
    assert len(fetched(page)) > 9
    assert page.browser.get_log("browser") == []  # type: ignore[no-untyped-call]


def test_the_browser_never_has_token_key_or_jwt_nor_an_agents_address(page: Page) -> None:
    use_everything(page)
    read = "const [url, done] = arguments; fetch(url).then(async (a) => done(`${[...a.headers]} ${await a.text()}`))"
    urls = fetched(page)
    seen = [page.browser.execute_async_script(read, url) for url in urls]
    seen += [*urls, page.browser.page_source, str(page.browser.get_cookies())]
    seen.append(page.run("return JSON.stringify([localStorage, sessionStorage, document.cookie, history.state])"))
    everything = "\n".join(seen)
    assert "A-51" in everything
    world = page.portal.world
    for secret in (world.api_token, "cst_", world.secret, str(world.key_id), AGENT_EMAIL, AGENT_AVATAR, "Hopper"):
        assert secret not in everything
    # A JWT begins with the base64url of {" and has two dots; a session cookie of Flask is not one of ours.
    assert [found for found in re.findall(r"eyJ[\w-]+\.[\w-]+\.[\w-]+", everything) if is_jwt(found)] == []


def is_jwt(text: str) -> bool:
    return "alg" in json.loads(base64.urlsafe_b64decode(text.partition(".")[0] + "=="))


def test_a_phone_loads_little(page: Page) -> None:
    resize(page.browser, *PHONE)
    page.browser.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})
    page.open()
    script = """return performance.getEntriesByType('navigation').concat(performance.getEntriesByType('resource'))
        .reduce((sum, entry) => sum + entry.encodedBodySize, 0)"""
    assert page.run(script) < 60_000
    assert len(fetched(page)) <= 7


@pytest.mark.parametrize(("path", "cache"), [("", "private, no-store"), ("api/cases/open", "private, no-store")])
def test_every_answer_says_what_the_page_may_do(portal: Portal, path: str, cache: str) -> None:
    with urllib.request.urlopen(f"{portal.url}{path}", timeout=PATIENCE) as answer:  # noqa: S310
        policy = answer.headers["Content-Security-Policy"].split("; ")
        assert answer.headers["Cache-Control"] == cache
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert policy[:2] == ["default-src 'none'", "script-src 'self'"]
    assert "unsafe" not in "".join(policy)


def test_the_demo_answers_to_no_name_but_its_own(portal: Portal) -> None:
    request = urllib.request.Request(portal.url, headers={"Host": "rebound.example.com"})  # noqa: S310
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request, timeout=PATIENCE)  # noqa: S310
