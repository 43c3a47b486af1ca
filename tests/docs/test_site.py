"""The built site: whole, of nothing but its own files, and the same text as on the code host."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("mkdocs", reason="the extra 'docs' is not installed, or Python is older than 3.11")
markdown_it = pytest.importorskip("markdown_it")

ROOT = Path(__file__).parents[2]
COUNTED = ("h1", "h2", "h3", "h4", "li", "tr", "td", "pre", "img", "blockquote")


class Elements(HTMLParser):
    """What an HTML page holds: ids, what it links to and loads, and how many elements its article has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.linked: list[str] = []
        self.loaded: list[str] = []
        self.counts: Counter[str] = Counter()
        self._inside = "<article" not in text
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.linked.append(given["href"])
        elif tag == "link" and given.get("rel") not in ("canonical", "prev", "next", "edit"):
            self.loaded.append(given.get("href", ""))
        if "src" in given:
            self.loaded.append(given["src"])
        self._inside |= tag == "article"
        self.counts[tag] += self._inside

    def handle_endtag(self, tag: str) -> None:
        self._inside &= tag != "article"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3000, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return folder


@pytest.fixture(scope="module")
def built(site: Path) -> dict[Path, Elements]:
    return {
        path: Elements(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if "assets" not in path.parts
    }


def of_page(site: Path, page: Path) -> Path:
    """The built page of a page of the repository."""
    name = page.relative_to(ROOT).as_posix().removeprefix("docs/")
    return site / (
        f"{name.removesuffix('README.md')}index.html" if page.name == "README.md" else f"{name[:-3]}/index.html"
    )


@pytest.mark.slow
def test_nothing_comes_from_elsewhere(site: Path, built: dict[Path, Elements]) -> None:
    for path, page in built.items():
        assert not [address for address in page.loaded if urlsplit(address).netloc], path
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
def test_every_link_and_anchor_is_there(site: Path, built: dict[Path, Elements]) -> None:
    checked = 0
    for path, page in built.items():
        for address in (*page.linked, *page.loaded):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path.relative_to(site)}: {address}"
            if parts.fragment and target in built:
                assert unquote(parts.fragment) in built[target].ids, f"{path.relative_to(site)}: {address}"
            checked += 1
    assert checked > 1000


@pytest.mark.slow
def test_pages_are_what_the_code_host_shows(site: Path, built: dict[Path, Elements]) -> None:
    """Two readers of Markdown: what one takes for a list, the other must."""
    read = markdown_it.MarkdownIt("commonmark").enable("table")
    for page in (ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        host = Elements(read.render(page.read_text(encoding="utf-8"))).counts
        ours = built[of_page(site, page)].counts
        assert {tag: ours[tag] for tag in COUNTED} == {tag: host[tag] for tag in COUNTED}, page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "file"),
    [
        ("grace_retrieval", "grace_retrieval/__init__.py"),
        ("grace_retrieval.indexing", "grace_retrieval/indexing/__init__.py"),
        ("grace_retrieval.training", "grace_retrieval/training.py"),
        ("langchain_grace", "integrations/langchain_grace/__init__.py"),
        ("llama_index.embeddings.grace", "integrations/llama_index/embeddings/grace/__init__.py"),
        ("chroma_grace", "integrations/chroma_grace/__init__.py"),
    ],
)
def test_the_reference_has_every_public_name(site: Path, built: dict[Path, Elements], package: str, file: str) -> None:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    (names,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    ]
    ids = built[site / "api" / package / "index.html"].ids
    assert not [name for name in names if name != "__version__" and f"{package}.{name}" not in ids]
