"""Imports point one way: no module needs another that needs it, inside functions and for types included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = {
    "grace_retrieval": ROOT,
    "langchain_grace": ROOT / "integrations",
    "llama_index": ROOT / "integrations",
    "haystack_integrations": ROOT / "integrations",
    "chroma_grace": ROOT / "integrations",
    "grace_training": ROOT / "training",
    "grace_benchmarks": ROOT / "benchmarks",
}


def modules() -> dict[str, Path]:
    found = {}
    for room, parent in ROOMS.items():
        for path in (parent / room).rglob("*.py"):
            parts = path.relative_to(parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Modules of ours that a module imports anywhere. Public names that a package hands on lazily are strings to it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            submodules = [f"{node.module}.{alias.name}" for alias in node.names]
            inside = [submodule for submodule in submodules if submodule in known]
            yield from inside
            if node.module in known and len(inside) < len(submodules):
                yield node.module


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that need each other (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in graph[name]:
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in graph:
        if name not in order:
            visit(name)
    return found


def test_no_import_circle() -> None:
    known = modules()
    graph = {name: set(imports_of(name, path, known)) - {name} for name, path in known.items()}
    assert len(graph) > 150 and "grace_retrieval.pipeline" in graph["grace_retrieval.embedder"]
    assert not circles(graph)


def test_a_circle_would_be_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_the_core_knows_neither_training_nor_benchmarks() -> None:
    """Only the module that hands training's names on, and that an index can be shown to other frameworks."""
    known = modules()
    others = tuple(room for room in ROOMS if room != "grace_retrieval")
    reaching = {
        name
        for name, path in known.items()
        if name.startswith("grace_retrieval")
        and any(other.startswith(others) for other in imports_of(name, path, known))
    }
    assert reaching <= {"grace_retrieval.training", "grace_retrieval.indexing.index"}
