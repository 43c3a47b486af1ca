"""The page: made from rows of real runs, opened in a real browser; tables of the documents are those of their rows."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="the extra 'bench' is not installed")

from grace_benchmarks.record import RESULTS, RowFile, read_rows
from grace_benchmarks.report import tables
from grace_benchmarks.report.page import page_tables, write_report
from grace_benchmarks.report.rows import collect
from grace_retrieval import InputError

NAMES = ("recall-speed", "recall-memory", "speed-size", "quality", "quality-cost", "quality-length", "throughput")
SHIPPED = [RESULTS / name for name in ("shipped", "budgets")]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The committed rows, and a failed one whose reason would be markup."""
    folder = tmp_path_factory.mktemp("rows")
    RowFile(folder / "ann.jsonl").append(
        {
            "key": "f",
            "kind": "ann",
            "status": "failed",
            "factory": "<script>alert(1)</script>",
            "search": "",
            "failed": "no & no",
        }
    )
    return [*SHIPPED, folder]


@pytest.fixture(scope="module")
def page(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(sources, tmp_path_factory.mktemp("report") / "made")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no chromium and chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def test_pictures_are_written_beside_the_page(page: Path) -> None:
    for name in NAMES:
        content = (page.parent / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000


def test_the_page_opens_in_a_browser_and_loads_nothing(page: Path, browser: Any) -> None:
    browser.get(page.as_uri())
    assert browser.get_log("browser") == []
    loaded = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert loaded == []
    assert browser.execute_script("return document.querySelectorAll('script, link, img, iframe').length") == 0
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('figure svg')].map(s => [s.getBoundingClientRect().width, "
        "s.getBoundingClientRect().height])"
    )
    assert len(sizes) == len(NAMES)
    assert all(width > 300 and height > 150 for width, height in sizes), "every picture is seen"
    wide = browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide == 0, "nothing sticks out"
    assert "<script>alert(1)</script>" in browser.find_element("id", "failures").text, "text, not markup"


def test_best_values_are_marked(page: Path, browser: Any) -> None:
    browser.get(page.as_uri())
    found = browser.execute_script(
        "return [...document.querySelectorAll('section')].filter(s => s.querySelector('h2').textContent.startsWith("
        "'Indexes over 10,000')).map(s => [...s.querySelectorAll('td.best')].map(c => c.textContent))"
    )
    assert len(found) == 1
    rows = [row for row in read_rows(RESULTS / "shipped" / "ann.jsonl") if row["data"]["n"] == 10_000]
    assert "1.0000" in found[0]
    assert f"{max(row['single_qps'] for row in rows):,.0f}" in found[0]
    assert f"{min(row['bytes_per_vector'] for row in rows):,.0f}" in found[0]


def test_the_page_says_what_was_run_on_what(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    row = collect(SHIPPED)[0]
    for value in (row["environment"]["processor"], row["environment"]["commit"], "faiss-cpu"):
        assert value in text


def test_tables_hold_the_figures_of_the_rows() -> None:
    rows = collect(SHIPPED)
    found = {table.title: table for table in page_tables(rows)}
    ours = next(
        row
        for row in rows
        if row["kind"] == "retrieval" and row["data"]["name"] == "medline" and row["column"] == "text"
    )
    (cells,) = (line for line in found["Retrieval: medline"].rows if line[0].text == "grace-nano, text only")
    assert cells[1].text == f"{ours['nDCG@10']:.4f}"
    assert not cells[1].best, "BM25 is better"


def test_pictures_of_the_same_rows_are_the_same(sources: list[Path], page: Path, tmp_path: Path) -> None:
    again = write_report(sources, tmp_path)
    assert again.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")


def test_no_rows_and_no_folder_to_write_to(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No rows in"):
        write_report([tmp_path], tmp_path / "report")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write the report"):
        write_report(SHIPPED, tmp_path / "file")


def test_without_matplotlib_the_command_names_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from grace_retrieval.cli import main\n"
        f"sys.argv = ['grace', 'bench', 'report', {str(SHIPPED[0])!r}, '--out', {str(tmp_path)!r}]\n"
        "main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    assert "pip install 'grace-retrieval[bench]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_tables_of_the_documents_are_those_of_the_rows() -> None:
    root = RESULTS.parents[1]
    assert (root / "grace_retrieval" / "indexing" / "measured.json").read_text(
        encoding="utf-8"
    ) == tables.shipped_rows()
    places = 0
    for file in (root / "README.md", *(root / "docs").glob("*.md")):
        text = file.read_text(encoding="utf-8")
        places += text.count("<!-- table: ")
        assert tables.fill(text) == text, f"{file.name} is stale: run `make tables`"
    assert places >= 6


def test_a_table_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match="no table 'nonsense'"):
        tables.fill("<!-- table: nonsense -->\n<!-- end table -->")
    old = "before\n<!-- table: engine -->\nold\n<!-- end table -->\nafter"
    assert "old" not in tables.fill(old)
    assert tables.fill(tables.fill(old)) == tables.fill(old)
