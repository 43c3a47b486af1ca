"""The page at /, in a real browser: by keyboard, on a telephone, in the dark, and with a model that writes markup."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from grace_retrieval import GraceEmbedder
from tests.serve.conftest import DOCUMENTS, MARKUP, Local, local_server

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement


def until(true: Callable[[], Any]) -> Any:
    end = time.monotonic() + 30
    while not (found := true()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return found


def all_of(browser: Chrome, selector: str) -> list[WebElement]:
    return browser.find_elements("css selector", selector)


def one(browser: Chrome, selector: str) -> WebElement:
    return browser.find_element("css selector", selector)


@contextmanager
def page(browser: Chrome, url: str) -> Iterator[None]:
    """Open the page; afterwards, check that it was at peace: no error, no foreign script, nothing from elsewhere."""
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(f"{url}/")
    until(lambda: one(browser, "#form").is_displayed() or one(browser, "#key-form").is_displayed())
    yield
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert sent and all(address.startswith((url, "data:")) for address in sent), sent
    assert [entry for entry in browser.get_log("browser") if "401" not in entry["message"]] == []
    assert browser.execute_script("return window.broken") is None


def ask(browser: Chrome, query: str) -> None:
    """Type a query as somebody with a keyboard does, and wait for the answer."""
    from selenium.webdriver.common.keys import Keys

    browser.switch_to.active_element.send_keys("/")
    assert browser.switch_to.active_element == one(browser, "#query")
    one(browser, "#query").send_keys(query, Keys.ENTER)
    until(lambda: all_of(browser, ".hit") and not one(browser, "#progress").is_displayed())


def test_a_search_by_keyboard_with_the_heat_map_of_a_hit(browser: Chrome, local: Local) -> None:
    from selenium.webdriver.common.keys import Keys

    query, index = f"sea {MARKUP}", local.service.index
    assert index is not None
    with page(browser, local.url):
        one(browser, "h1").click()
        ask(browser, query)
        expected = index.search(query, 10).hits
        hits = all_of(browser, ".hit")
        assert [hit.find_element("css selector", "h2").text for hit in hits] == [hit.title for hit in expected]
        scores = [float(hit.find_element("css selector", ".score").text) for hit in hits]
        assert scores == pytest.approx([hit.score for hit in expected], abs=1e-4)
        for hit, found in zip(hits, expected, strict=True):
            assert hit.find_element("css selector", ".text").text == found.text
            wrote = hit.find_element("css selector", ".wrote").text
            assert "written by the model, not a quotation; it may be wrong" in wrote
            assert found.id != "d3" or MARKUP in wrote
        assert "written by the model" in one(browser, "#wrote").text
        summary = one(browser, "#summary").text
        assert summary.startswith("4 of 4 documents · ") and summary.endswith("was written just now")
        place = [hit.id for hit in expected].index("d3")
        for _ in range(place + 1):
            browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
        assert browser.switch_to.active_element == hits[place]
        hits[place].send_keys(Keys.ENTER)
        until(lambda: all_of(browser, ".hit.open"))
        map_ = hits[place].find_element("css selector", ".map")
        document = map_.find_element("css selector", ".side.document").text
        assert document.count(MARKUP) == 2, "once in the text, once in the rationale"
        assert map_.find_elements("css selector", ".w.up") and "Colour:" in map_.text
        assert not map_.find_elements("css selector", "script, img")
        browser.switch_to.active_element.send_keys(Keys.ESCAPE)
        assert not map_.is_displayed() and browser.switch_to.active_element == hits[place]
        browser.refresh()  # the address holds the query
        until(lambda: len(all_of(browser, ".hit")) == 4 and "cache" in one(browser, "#summary").text)
        assert one(browser, "#summary").text.endswith("the query's rationale came from the cache")


def test_filters_and_words(browser: Chrome, local: Local) -> None:
    from selenium.webdriver.support.ui import Select

    with page(browser, local.url):
        names = [label.text.split("\n")[0].strip() for label in all_of(browser, "#filters label")]
        assert names == ["kind", "n"]
        Select(one(browser, "#filters select[data-name=kind]")).select_by_visible_text("food")
        one(browser, "#hybrid").click()
        ask(browser, "bread")
        assert {hit.text.split("\n")[1] for hit in all_of(browser, ".hit .head")} == {"Title 1", "Title 3"}
        assert "vectors and words, fused by rank" in one(browser, "#summary").text


def test_long_work_shows_progress_and_can_be_cancelled(browser: Chrome, local: Local) -> None:
    from selenium.webdriver.common.keys import Keys

    with page(browser, local.url):
        with local.held():
            one(browser, "#query").send_keys("a query that waits", Keys.ENTER)
            until(lambda: local.service.admission.requests == 1)
            assert one(browser, "#doing").text == "Writing about the query …"
            assert one(browser, "[role=progressbar]").is_displayed()
            assert one(browser, "#status").get_attribute("textContent") == "Writing about the query …"
            until(lambda: one(browser, "#clock").text not in ("", "1 ms"))
            one(browser, "#cancel").click()
            until(lambda: local.service.admission.requests == 0)
        assert not one(browser, "#progress").is_displayed() and not one(browser, "#problem").is_displayed()


def test_texts_are_compared_where_there_is_no_index_and_a_key_is_asked_for(
    browser: Chrome, serve_embedder: GraceEmbedder
) -> None:
    from selenium.webdriver.common.keys import Keys

    texts = [document.text for document in DOCUMENTS]
    with local_server(serve_embedder, api_keys=("the-key",)) as local, page(browser, local.url):
        for key in ("wrong", "the-key"):
            until(lambda: one(browser, "#key-form").is_displayed() and not one(browser, "#key").get_attribute("value"))
            one(browser, "#key").send_keys(key, Keys.ENTER)
        until(lambda: one(browser, "#form").is_displayed())
        assert not one(browser, "#modes").is_displayed() and not one(browser, "#options").is_displayed()
        one(browser, "#texts").clear()
        one(browser, "#texts").send_keys("\n".join(texts))
        one(browser, "h1").click()
        ask(browser, "what is glass?")
        expected = sorted(serve_embedder.explain("what is glass?", texts), key=lambda one: one.rank)
        assert [hit.text for hit in all_of(browser, ".hit h2")] == [one.document.text for one in expected]
        one(browser, ".why").click()
        until(lambda: all_of(browser, ".hit.open .map .w"))


@pytest.mark.parametrize(("width", "dark"), [(380, True), (1200, False)])
def test_nothing_sticks_out_and_the_dark_is_dark(browser: Chrome, local: Local, width: int, dark: bool) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    try:
        with page(browser, local.url):
            one(browser, "h1").click()
            ask(browser, "x" * 300)
            one(browser, ".why").click()
            until(lambda: all_of(browser, ".hit.open"))
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            for element in ("html", ".hit", ".map .side"):
                ink, paper = (
                    browser.execute_script(
                        "let e = document.querySelector(arguments[0]), value;"
                        "do { value = getComputedStyle(e)[arguments[1]]; e = e.parentElement; }"
                        "while (e && value === 'rgba(0, 0, 0, 0)');"
                        "return value.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0);",
                        element,
                        name,
                    )
                    for name in ("color", "backgroundColor")
                )
                assert (paper < 150 and ink > 500) if dark else (paper > 600 and ink < 250), element
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
