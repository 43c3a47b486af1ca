"""Extras and folders: what is missing is named with its command, and namespace packages stay open to others."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from grace_retrieval import MissingExtraError
from grace_retrieval.extras import require_extra

tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "langchain_grace": ("langchain_core", "langchain-core", "langchain"),
    "llama_index.embeddings.grace": ("llama_index.core", "llama-index-core", "llama-index"),
    "haystack_integrations.components.embedders.grace": ("haystack", "haystack-ai", "haystack"),
    "chroma_grace": ("chromadb", "chromadb", "chroma"),
}


def run(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=False, env=dict(os.environ)
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_framework_that_is_missing_is_named_with_the_command() -> None:
    code = f"""
import importlib, importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in {[module for module, *_ in PACKAGES.values()]!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
for package in {list(PACKAGES)!r}:
    try:
        importlib.import_module(package)
    except ImportError as error:
        print(type(error).__name__, error)
"""
    expected = [
        f"MissingExtraError {package} needs {distribution!r}. Install it with: pip install 'grace-retrieval[{extra}]'"
        for package, (_, distribution, extra) in PACKAGES.items()
    ]
    assert run(code).splitlines() == expected


def test_an_old_framework_is_named_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.3.81")
    with pytest.raises(MissingExtraError) as caught:
        require_extra("json", "langchain-core", "1.0", extra="langchain", purpose="langchain_grace")
    assert str(caught.value) == (
        "langchain_grace needs 'langchain-core>=1.0'. Installed is langchain-core 0.3.81. Upgrade with: "
        "pip install --upgrade 'grace-retrieval[langchain]'"
    )


@pytest.mark.parametrize(
    ("installed", "minimum", "enough"),
    [("1.0", "1.0", True), ("1.10.2", "1.9", True), ("0.14.0rc1", "0.14", True), ("0.9.9", "0.14", False)],
)
def test_versions_are_compared_as_numbers(
    monkeypatch: pytest.MonkeyPatch, installed: str, minimum: str, enough: bool
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: installed)
    if enough:
        require_extra("json", "x", minimum, extra="e", purpose="p")
    else:
        with pytest.raises(MissingExtraError):
            require_extra("json", "x", minimum, extra="e", purpose="p")


def test_an_error_inside_a_framework_is_not_disguised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_framework.py").write_text("import something_it_needs")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="something_it_needs") as caught:
        require_extra("broken_framework", "broken-framework", "1.0", extra="e", purpose="p")
    assert not isinstance(caught.value, MissingExtraError)


def test_the_minimum_versions_are_those_of_the_extras() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, (_, distribution, extra) in PACKAGES.items():
        (requirement,) = [line for line in extras[extra] if line.startswith(f"{distribution}>=")]
        minimum = requirement.removeprefix(f"{distribution}>=").split(",")[0]
        source = (ROOT / "integrations" / package.replace(".", "/") / "__init__.py").read_text()
        assert f'"{distribution}", "{minimum}"' in source.replace("\n", " ").replace("  ", " ")


@pytest.mark.parametrize(
    "folder",
    [
        "llama_index",
        "llama_index/embeddings",
        "haystack_integrations",
        "haystack_integrations/components",
        "haystack_integrations/components/embedders",
    ],
)
def test_folders_shared_with_a_framework_are_namespace_packages(folder: str) -> None:
    assert (ROOT / "integrations" / folder).is_dir()
    assert not (ROOT / "integrations" / folder / "__init__.py").exists()


def test_the_wheel_holds_every_integration() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    for package in PACKAGES:
        assert f"integrations/{package.split('.')[0]}" in packages
    assert project["tool"]["llamahub"]["import_path"] == "llama_index.embeddings.grace"
    assert "GraceEmbedding" in project["tool"]["llamahub"]["class_authors"]


def test_shims_are_thin() -> None:
    """But for the stores, which are a framework's whole interface over an index."""
    files = [path for path in (ROOT / "integrations").rglob("*.py") if path.name != "vector_store.py"]
    assert files and all(len(path.read_text().splitlines()) < 80 for path in files)
