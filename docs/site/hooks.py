"""The site is the repository's own pages: README, docs, model cards, changelog, and the files that they link to.

Pages keep their place in the repository for MkDocs, so the same links work there and on the code host. What is added is
the API reference: a page for each public package, of the names in its `__all__`.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))  # MkDocs loads this file by its path

from links import ROOT, links, target

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

__all__ = ["PACKAGES", "on_files", "on_page_markdown", "public_names"]

PACKAGES = {
    "grace_retrieval": "grace_retrieval/__init__.py",
    "grace_retrieval.indexing": "grace_retrieval/indexing/__init__.py",
    "grace_retrieval.training": "grace_retrieval/training.py",
    "langchain_grace": "integrations/langchain_grace/__init__.py",
    "llama_index.embeddings.grace": "integrations/llama_index/embeddings/grace/__init__.py",
    "haystack_integrations.components.embedders.grace": (
        "integrations/haystack_integrations/components/embedders/grace/__init__.py"
    ),
    "chroma_grace": "integrations/chroma_grace/__init__.py",
}
"""Public packages of the API reference, and the files that list their names."""

# Classes of pydantic have no signature that could be compared with what is documented.
_OF_PYDANTIC = """
    options:
      docstring_options: {warn_unknown_params: false, warn_missing_types: false}"""

_FENCE_WORDS = re.compile(r"^(```\w+) no-run$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the theme's own files, the pages of the repository, what they link to, and the reference.

    Args:
        files: What MkDocs found.
        config: Its configuration.

    Returns:
        What the site is made of.
    """
    docs = str(Path(config.docs_dir))
    site = Files([file for file in files if file.src_dir != docs])
    for path in _linked(*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))):
        name = path.relative_to(ROOT).as_posix()
        site.append(_named(File.generated(config, name, abs_src_path=str(path))))
    for package, file in PACKAGES.items():
        content = "\n\n".join(_reference(package, public_names(ROOT / file)))
        site.append(_named(File.generated(config, f"docs/api/{package}.md", content=content)))
    return site


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Take away what stands behind the language of a block of code for our tests alone.

    Args:
        markdown: The page.
        page: Where it goes.
        config: MkDocs' configuration.
        files: What the site is made of.
    """
    return _FENCE_WORDS.sub(r"\1", markdown)


def public_names(file: Path) -> list[str]:
    """The names that a package lists in its `__all__`, read without importing it.

    Args:
        file: File of the package.
    """
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and any(
            getattr(name, "id", "") == "__all__" for name in statement.targets
        ):
            names: list[str] = ast.literal_eval(statement.value)
            return names
    raise ValueError(f"{file} has no __all__")


def _linked(*first: Path) -> list[Path]:
    """Pages, and all files of the repository that they link to, and so on."""
    found = dict.fromkeys(first)
    waiting = list(first)
    while waiting:
        page = waiting.pop()
        for link in links(page):
            path = target(link)
            # What is dead is MkDocs' to say.
            if path is not None and path.is_file() and path not in found:
                found[path] = None
                waiting += [path] if path.suffix == ".md" else []
    return list(found)


def _named(file: File) -> File:
    """Pages of docs/ have no docs/ in their address."""
    file.dest_uri = file.dest_uri.removeprefix("docs/")
    return file


def _reference(package: str, names: list[str]) -> list[str]:
    """The page of a package: its docstring, and a directive for each of its names."""
    # What one begins with comes first, and constants last.
    names = sorted(names, key=lambda name: (name.isupper(), not name.startswith("Grace") or name.endswith("Error")))
    options = "" if package.startswith("grace_retrieval") else _OF_PYDANTIC
    return [
        f"# {package}",
        f"::: {package}\n    options: {{members: false, show_root_heading: false, show_root_toc_entry: false}}",
        *(f"::: {package}.{name}{options}" for name in names if name != "__version__"),
    ]
