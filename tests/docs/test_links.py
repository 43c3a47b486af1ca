"""Links of README, docs, changelog and cards lead somewhere; and the check finds those that do not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("markdown_it", reason="the extra 'docs' is not installed")

ROOT = Path(__file__).parents[2]


def load(name: str) -> ModuleType:
    """A file of docs/site, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "site" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


links = load("links")


def test_no_link_is_dead() -> None:
    assert list(links.dead_links()) == []
    checked = {path.relative_to(ROOT).as_posix() for path in links.pages()}
    assert checked >= {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/choosing.md", "docs/integrations/mteb.md"}
    assert sum(len(links.links(page)) for page in links.pages()) > 100


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("[a](docs/other.md)", None),
        ("[a](docs/other.md#two-words-and-code)", None),
        ("[a](docs/other.md#again-1)", None),
        ("[a](docs/other.md#own)", None),
        ("[a](#here)", None),
        ("[a](https://example.org/x#y), <https://example.org>", None),
        ("`[a](no.md)`", None),
        ("```\n[a](no.md)\n```", None),
        ("[a](no.md)", "'no.md' does not exist"),
        ("![a](no.png)", "'no.png' does not exist"),
        ("[a][b]\n\n[b]: no.md", "'no.md' does not exist"),
        ('<a href="no.md">a</a>', "'no.md' does not exist"),
        ("| a |\n| --- |\n| [a](no.md) |", "'no.md' does not exist"),
        ("[a](docs)", "is a folder"),
        ("[a](../outside.md)", "leads out of the repository"),
        ("[a](/docs/other.md)", "begins with a slash"),
        ("[a](docs/other.md#three)", "has an anchor that is no heading"),
        ("[a](docs/other.md#again-2)", "has an anchor that is no heading"),
        ("[a](#there)", "has an anchor that is no heading"),
        ("[a](https://)", "is no address"),
        ("[a](htps://example.org)", "is no address"),
    ],
)
def test_dead_links_are_found(tmp_path: Path, written: str, problem: str | None) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "other.md").write_text(
        '# Two *words*, and `code`\n\n## Again\n\n## Again\n\n<a id="own"></a>\n\n[back](../page.md#here)\n'
    )
    (tmp_path / "page.md").write_text(f"# Here\n\n{written}\n")
    found = list(links.dead_links(tmp_path))
    assert len(found) == (problem is not None), found
    if problem is not None:
        assert found[0].startswith("page.md:") and problem in found[0]
