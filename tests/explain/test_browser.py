"""Pages in a real browser: Chromium, without a window. Skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

    from grace_retrieval import Explanation, GraceEmbedder

MakeEmbedder = Callable[..., "GraceEmbedder"]

QUERIES = ["What causes ocean tides?", "<script>alert(1)</script>", "how does bread rise"]
TEXTS = [
    "The moon's gravity pulls on the oceans.",
    "Bread rises because yeast makes gas.",
    "Text with <script>window.broken = 1; alert(1)</script> in it.",
]
RATIONALE = "<think> a </think> <script>window.broken = 2; alert(2)</script><img src=x onerror='window.broken = 3'>"

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    names = ("chromium", "chromium-browser", "google-chrome")
    binary = next((path for path in map(shutil.which, names) if path), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no Chromium with chromedriver is installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    yield chrome
    chrome.quit()


@pytest.fixture
def embedder(make_embedder: MakeEmbedder) -> GraceEmbedder:
    return make_embedder(cache="memory")


def show(browser: Chrome, path: Path, html: str) -> None:
    """Open a page, and check that it is at peace: no error, no dialog, and no request but for itself."""
    import json

    path.write_text(html, encoding="utf-8")
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(path.as_uri())
    requested = [
        event["params"]["request"]["url"]
        for event in (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
        # The browser's own pages, such as an empty tab, send requests too.
        if event["method"] == "Network.requestWillBeSent" and event["params"]["documentURL"] == path.as_uri()
    ]
    assert [url for url in requested if not url.startswith("data:")] == [path.as_uri()]
    assert browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)") == []
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.broken") is None


def point_at(browser: Chrome, element: Any) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(browser).move_to_element(element).perform()


def check_hover(browser: Chrome, root: Any, explanation: Explanation) -> None:
    """Pointing at words of either side shows their numbers, and marks their partners on the other side."""
    for name, side, other in (
        ("query", explanation.query, explanation.document),
        ("document", explanation.document, explanation.query),
    ):
        place, word = max(
            ((place, word) for place, word in enumerate(side.words) if word.partners), key=lambda item: item[1].weight
        )
        element = root.find_element("css selector", f".side.{name} .w[data-i='{place}']")
        assert element.text == side.word_text(place)
        point_at(browser, element)
        marked = root.find_elements("css selector", ".w.partner")
        assert sorted(int(one.get_attribute("data-i")) for one in marked) == sorted(
            partner.word for partner in word.partners
        )
        assert all(f"side {'document' if name == 'query' else 'query'}" in _side_of(browser, one) for one in marked)
        tip = browser.find_element("css selector", ".grace-tip")
        assert tip.is_displayed()
        first, numbers, partners = tip.text.split("\n")
        assert first == side.word_text(place) and f"weight {word.weight:+.4f}" in numbers
        assert partners.startswith(f"agrees most with: {other.word_text(word.partners[0].word)}")
    point_at(browser, root.find_element("css selector", "h3"))
    assert not root.find_elements("css selector", ".w.partner")
    assert not browser.find_element("css selector", ".grace-tip").is_displayed()


def _side_of(browser: Chrome, element: Any) -> str:
    return str(browser.execute_script("return arguments[0].closest('.side').className", element))


def test_a_page_opens_shows_everything_as_text_and_answers_to_the_pointer(
    browser: Chrome, embedder: GraceEmbedder, tmp_path: Path
) -> None:
    explanation = embedder.explain(QUERIES[0], TEXTS[2], document_rationales=RATIONALE)
    show(browser, tmp_path / "page.html", explanation.to_html())
    document = browser.find_element("css selector", ".side.document")
    assert TEXTS[2] in document.text and RATIONALE in document.text
    assert "given by the caller" in document.text
    query = browser.find_element("css selector", ".side.query")
    assert QUERIES[0] in query.text and "written by the model, not a quotation" in query.text
    assert f"{explanation.score:.4f}" in browser.find_element("css selector", ".facts").text
    check_hover(browser, browser.find_element("tag name", "body"), explanation)


def test_a_fragment_works_inside_another_page_also_twice(
    browser: Chrome, embedder: GraceEmbedder, tmp_path: Path
) -> None:
    found = embedder.explain(QUERIES[0], TEXTS[:2])
    both = "".join(f"<div id=one{place}>{one.to_html(page=False)}</div>" for place, one in enumerate(found))
    html = f"<!DOCTYPE html><meta charset=utf-8><link rel=icon href='data:,'><p>Notebook</p>{both}"
    show(browser, tmp_path / "notebook.html", html)
    for place, one in enumerate(found):
        check_hover(browser, browser.find_element("id", f"one{place}"), one)


def test_a_report_has_every_hit_and_is_walked_through_without_a_server(
    browser: Chrome, embedder: GraceEmbedder, tmp_path: Path
) -> None:
    from grace_retrieval.explain.report import report_html

    answers = [
        sorted(embedder.explain(query, TEXTS, document_rationales=[None, None, RATIONALE]), key=lambda one: one.rank)
        for query in QUERIES
    ]
    pieces = report_html(QUERIES, answers, title="A <report>", facts="3 queries")
    show(browser, tmp_path / "report.html", "".join(pieces))
    assert browser.title == "A <report>"
    sections = browser.find_elements("css selector", ".answer")
    assert [section.find_element("tag name", "h2").text for section in sections] == [
        f"{place} {query}" for place, query in enumerate(QUERIES, start=1)
    ]
    for section, hits in zip(sections, answers, strict=True):
        shown = section.find_elements("css selector", "details.hit")
        assert [one.find_element("css selector", ".score").text for one in shown] == [
            f"{hit.score:.4f}" for hit in hits
        ]
        assert [one.get_attribute("open") is not None for one in shown] == [True, False, False]
    links = browser.find_elements("css selector", "nav a")
    assert [link.text for link in links] == QUERIES
    links[2].click()
    assert browser.current_url.endswith("#query-3")
    assert browser.execute_script("return arguments[0].getBoundingClientRect().top < innerHeight", sections[2])
    second = sections[2].find_elements("css selector", "details.hit")[1]
    second.find_element("tag name", "summary").click()
    assert answers[2][1].document.text in second.find_element("css selector", ".side.document").text
    check_hover(browser, second, answers[2][1])


@pytest.mark.parametrize("width", [380, 1200])
def test_nothing_sticks_out_of_a_narrow_or_wide_window(
    browser: Chrome, embedder: GraceEmbedder, tmp_path: Path, width: int
) -> None:
    found = embedder.explain(QUERIES[0], ["moon " * 60 + "x" * 300, TEXTS[0]])
    from grace_retrieval.explain.report import report_html

    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        for html in (found[0].to_html(), "".join(report_html([QUERIES[0]], [found], title="Report", facts="1 query"))):
            show(browser, tmp_path / "page.html", html)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            sides = [one.location for one in browser.find_elements("css selector", "main .side")][:2]
            assert (sides[0]["y"] == sides[1]["y"]) == (width == 1200)
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
