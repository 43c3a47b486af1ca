"""The examples run as they are written, offline once the policy is there, and print what the documentation shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COVIDQA = ROOT.parent / "shared" / "data" / "retrieval" / "covidqa" / "corpus.jsonl"
EXAMPLES = {
    "langchain_retrieval": ("langchain_core", "docs/integrations/langchain.md"),
    "llama_index_query": ("llama_index.vector_stores.faiss", "docs/integrations/llama_index.md"),
}


def run(example: str, *arguments: str) -> str:
    pytest.importorskip(EXAMPLES[example][0], reason=f"{EXAMPLES[example][0]} is not installed")
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(ROOT / "examples" / f"{example}.py"), *arguments],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == "", "neither bars nor warnings"
    return result.stdout


@pytest.mark.usefixtures("as_printed")
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_prints_what_the_documentation_shows(example: str) -> None:
    printed = run(example).strip()
    page = (ROOT / EXAMPLES[example][1]).read_text(encoding="utf-8")
    shown = [block.strip() for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL)]
    assert any(block in printed for block in shown), printed


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_short(example: str) -> None:
    assert len((ROOT / "examples" / f"{example}.py").read_text().splitlines()) < 60


@pytest.mark.skipif(not COVIDQA.exists(), reason="the shared collection covidqa is not beside this checkout")
@pytest.mark.usefixtures("grace_small")
def test_an_example_runs_on_a_file_of_passages(tmp_path: Path) -> None:
    passages = COVIDQA.read_text(encoding="utf-8").splitlines()[:12]
    (tmp_path / "some.jsonl").write_text("\n".join(passages))
    printed = run("langchain_retrieval", str(tmp_path / "some.jsonl"), "mother-to-child transmission of HIV")
    assert printed.count("written by the model: ") == 3
    starts = [json.loads(line)["text"].splitlines()[0][:90] for line in passages]
    found = re.findall(r"^\d\. (.*)$", printed, re.MULTILINE)
    assert len(found) == 3 and all(line in starts for line in found)


@pytest.mark.usefixtures("grace_small")
def test_the_notebook_runs_from_its_first_cell_to_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss", reason="pip install 'grace-retrieval[cpu]'")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "examples" / "first_index.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "what it prints is not kept"
            exec(compile("".join(cell["source"]), "first_index.ipynb", "exec"), names)
    printed = capsys.readouterr().out
    assert "How yeast raises a loaf" in printed.splitlines()[0], "the right passage comes first"
    assert "1 deleted, 28 left" in printed
    assert "<span" in names["explanations"][0]._repr_html_()
