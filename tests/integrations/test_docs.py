"""The pages of docs/integrations: their code runs and prints what they show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {
    "langchain": "langchain_core",
    "llama_index": "llama_index.core",
    "haystack": "haystack",
    "chroma": "chromadb",
    "mteb": "mteb",
}
# Code that is followed by what it prints. Lines may be broken anywhere between words.
_CODE_AND_OUTPUT = re.compile(r"```python\n(.*?)```\n(?:[^`]*?\n```\n(.*?)```)?", re.DOTALL)


@pytest.fixture(autouse=True)
def settings_of_frameworks() -> Any:
    """What a page sets for the whole process is as before, for other tests."""
    from sentence_transformers import SentenceTransformer

    modules = SentenceTransformer._module_classes
    yield
    SentenceTransformer._module_classes = modules
    try:
        from llama_index.core import Settings
    except ModuleNotFoundError:
        return
    Settings._embed_model = None


@pytest.mark.usefixtures("as_printed")
@pytest.mark.parametrize("page", PAGES)
def test_a_page_prints_what_it_shows(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(PAGES[page], reason=f"{PAGES[page]} is not installed")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "integrations" / f"{page}.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    compared = 0
    for code, shown in _CODE_AND_OUTPUT.findall(text):
        exec(compile(code, f"{page}.md", "exec"), names)
        printed = capsys.readouterr().out
        assert printed.split() == shown.split(), printed
        compared += bool(printed)
    assert compared >= 1
