"""Advice can be followed: messages name options that exist, and only those of the command that says it."""

from __future__ import annotations

import ast
import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

import grace_benchmarks
import grace_retrieval
import grace_training
from grace_retrieval import InputError, advice
from grace_retrieval.cli import app
from grace_retrieval.corpus.files import TextSource
from grace_retrieval.indexing import Document, build_index, delete_documents

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z_-]*")
OF_OTHER_PROGRAMS = {
    "--upgrade",
    "--force-reinstall",
    "--help",
    "--no-deps",
    "--merge",
    "--no-vocab",
    "--num_processes",
}


def commands(command: Any, name: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], set[str]]]:
    """Every command of the command line, and its options."""
    yield name, {option for parameter in command.params for option in parameter.opts}
    if isinstance(command, TyperGroup):
        context = typer.Context(command)
        for inner in command.list_commands(context):
            yield from commands(command.get_command(context, inner), (*name, inner))


OPTIONS = dict(commands(typer.main.get_command(app)))


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """Strings of a module that users may be shown: all but docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Inputs with something wrong in them."""
    monkeypatch.chdir(tmp_path)
    Path("docs.jsonl").write_text('{"id": "a", "text": "Bread rises.", "vector": [1, 0]}\n', encoding="utf-8")
    Path("other.jsonl").write_text('{"id": "a", "text": "Tides.", "vector": [0, 1]}\n', encoding="utf-8")
    Path("blank.jsonl").write_text('{"id": "a", "text": " "}\n', encoding="utf-8")
    Path("ids.jsonl").write_text('{"text": "a"}\n{"id": "b", "text": "b"}\n', encoding="utf-8")
    Path("pairs.jsonl").write_text('{"query": "rising", "answer": "Bread rises."}\n', encoding="utf-8")
    Path("queries.txt").write_text("what rises\n\nwhich sleeps\n", encoding="utf-8")
    build_index([Document(id="a", text="Bread rises.", vector=[1.0, 0.0])], "index")
    return tmp_path


def test_examples() -> None:
    found = doctest.testmod(advice)
    assert found.attempted and not found.failed


@pytest.mark.parametrize("package", [grace_retrieval, grace_benchmarks, grace_training])
def test_every_option_in_a_message_is_one_of_a_command(package: Any) -> None:
    known = set().union(*OPTIONS.values()) | OF_OTHER_PROGRAMS
    (folder,) = package.__path__
    for path in sorted(Path(folder).rglob("*.py")):
        if "import argparse" in path.read_text(encoding="utf-8"):
            continue  # a program with options of its own
        for line, message in messages(path):
            if OPTION.fullmatch(message):
                continue  # what a program is given, not what a user is told
            assert set(OPTION.findall(message)) <= known, f"{path}:{line}: {message}"


@pytest.mark.parametrize(
    ("command", "arguments", "advised"),
    [
        (("embed",), ("blank.jsonl", "out.parquet"), {"--skip-bad", "--allow-empty"}),
        (("embed",), ("ids.jsonl", "out.parquet"), {"--id-column"}),
        (("embed",), ("pairs.jsonl", "out.parquet"), {"--text-column"}),
        (("report",), ("--index", "index", "--queries", "queries.txt", "--html", "page.html"), set()),
        (("report",), ("--index", "index", "--queries", "pairs.jsonl", "--html", "page.html"), {"--text-column"}),
        (("report",), ("--index", "index", "--queries", "ids.jsonl", "--html", "page.html"), set()),
        (("explain",), ("bread", "@queries.txt"), set()),
        (("explain",), ("bread", "@pairs.jsonl"), set()),
        (("index", "build"), ("blank.jsonl", "--out", "new"), {"--skip-bad", "--allow-empty"}),
        (
            ("index", "build"),
            ("other.jsonl", "--vectors", "vector", "--out", "index"),
            {"--add", "--update", "--overwrite"},
        ),
        (("index", "add"), ("docs.jsonl", "--vectors", "vector", "--out", "none"), set()),
        (("index", "add"), ("docs.jsonl", "--vectors", "vector", "--update", "--out", "none"), set()),
        (
            ("index", "add"),
            ("other.jsonl", "--vectors", "vector", "--out", "index"),
            {"--update", "--on-duplicate-id"},
        ),
        (("index", "delete"), ("index", "b"), {"--skip-missing"}),
        (("bench", "retrieval"), ("--pairs", "pairs.jsonl:query:answer", "--columns", "bm25", "--out", "out"), set()),
        (("bench", "retrieval"), ("--out", "out"), {"--data", "--documents", "--pairs", "--task"}),
    ],
)
def test_commands_advise_options_that_they_have(
    written: Path, command: tuple[str, ...], arguments: tuple[str, ...], advised: set[str]
) -> None:
    result = CliRunner().invoke(app, [*command, *arguments])
    assert result.exit_code == 1, result.output
    # The advice may be another command, with its own options.
    own = re.sub(r"grace index build .*", "", result.stderr)
    assert set(OPTION.findall(own)) == advised, result.stderr
    assert advised <= OPTIONS[command]


def test_python_is_advised_in_python(written: Path) -> None:
    said = []
    for call in (
        lambda: list(TextSource(path="blank.jsonl").documents()),
        lambda: list(TextSource(path="pairs.jsonl").documents()),
        lambda: build_index([Document(id="a", text="Tides.", vector=[0.0, 1.0])], "index", mode="add"),
        lambda: build_index([Document(id="a", text="Tides.", vector=[0.0, 1.0])], "index"),
        lambda: delete_documents("index", ["b"]),
    ):
        with pytest.raises(InputError) as caught:
            call()
        said.append(str(caught.value))
    assert not OPTION.findall(" ".join(said)), said
    for message, word in zip(
        said, ("allow_empty=True", "text_column", "'update'", "'add'", "missing='skip'"), strict=True
    ):
        assert word in message
