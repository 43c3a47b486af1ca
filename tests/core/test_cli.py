"""The command line as a whole: help, version, errors, `grace demo` and `grace rationale`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from grace_retrieval import __version__
from grace_retrieval.cli import app

if TYPE_CHECKING:
    from click.testing import Result

ROOT = Path(__file__).parents[2]

IMPORTS = """
import json, sys
from typer.testing import CliRunner
from grace_retrieval.cli import app
codes = [CliRunner().invoke(app, arguments).exit_code for arguments in json.loads(sys.argv[1])]
heavy = {"torch", "transformers", "sentence_transformers", "pyarrow", "pandas"}
print(json.dumps([codes, sorted(heavy & set(sys.modules))]))
"""


@pytest.fixture(autouse=True)
def library_settings() -> Iterator[None]:
    """What the commands silence is heard again by other tests."""
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled
    from transformers.utils import logging

    level, shown, silent = logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    yield
    logging.set_verbosity(level)
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    (disable_progress_bars if silent else enable_progress_bars)()


@pytest.fixture(scope="module")
def short_model(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Path:
    """A saved GraceEmbedder with short rationales."""
    from grace_retrieval import GraceEmbedder

    folder = tmp_path_factory.mktemp("models") / "short"
    GraceEmbedder(tiny_policy, cache=None, max_new_tokens=6, device="cpu").save(str(folder))
    return folder


def grace(*arguments: object, input: str | bytes | None = None, **options: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=input, **options)


def process(*arguments: str, module: str = "grace_retrieval") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", module, *arguments] if module else [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)


def test_help_and_cache_commands_load_no_model_library() -> None:
    arguments = [
        ["--help"],
        ["demo", "--help"],
        ["embed", "--help"],
        ["rationale", "--help"],
        ["explain", "--help"],
        ["report", "--help"],
        ["cache", "--help"],
        ["cache", "stats"],
        ["cache", "path"],
    ]
    done = process("-c", IMPORTS, json.dumps(arguments), module="")
    assert json.loads(done.stdout) == [[0] * len(arguments), []], done.stderr


def test_modules_can_be_run() -> None:
    for module in ("grace_retrieval", "grace_retrieval.cli"):
        done = process("--version", module=module)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"grace-retrieval {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["demo", "--nonsense"],
        ["rationale"],
        ["rationale", "text", "--role", "passage"],
        ["rationale", "text", "--max-new-tokens", "-1"],
        ["embed", "in.jsonl"],
        ["embed", "in.jsonl", "out.parquet", "--batch", "0"],
        ["embed", "in.jsonl", "out.parquet", "--format", "xml"],
        ["cache", "nonsense"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    result = grace(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["rationale", "text", "--model", "./no-such-folder"], "does not exist"),
        (["rationale", " "], "blank"),
        (["rationale", "text", "--cache", "off"], "cache='off': give"),
        (["rationale", "text", "--device", "abacus"], "device='abacus' cannot be used"),
        (["demo", "--model", "./no-such-folder"], "does not exist"),
    ],
)
def test_errors_are_one_line(arguments: list[str], complaint: str) -> None:
    result = grace(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1


def test_debug_shows_where_an_error_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    from grace_retrieval import InputError

    assert isinstance(grace("--debug", "rationale", " ").exception, InputError)
    monkeypatch.setenv("GRACE_DEBUG", "1")
    assert isinstance(grace("rationale", " ").exception, InputError)


def test_demo(short_model: Path) -> None:
    from grace_retrieval.cli.demo import QUERIES

    first = grace("demo", "--model", short_model)
    assert first.exit_code == 0, first.output
    assert first.stderr == ""
    assert "31 texts embedded, 31 rationales generated, 0 from the cache" in first.stdout
    assert first.stdout.count("written by the model") == len(QUERIES) * 4
    assert "\x1b" not in first.stdout
    assert "grace cache stats" in first.stdout
    again = grace("demo", "--model", short_model)
    assert "31 texts embedded, 0 rationales generated, 31 from the cache" in again.stdout
    assert first.stdout.split("31 texts")[0] == again.stdout.split("31 texts")[0]


def test_demo_as_json(short_model: Path, grace_cache_dir: Path, make_embedder: Callable[..., Any]) -> None:
    result = grace("demo", "--model", short_model, "--no-cache", "--json")
    assert result.stderr == ""
    content = json.loads(result.stdout)
    assert (content["texts_embedded"], content["rationales_generated"]) == (31, 31)
    assert content["rationales_from_cache"] == 0
    assert not grace_cache_dir.exists()
    passages = {
        row["id"]: f"{row['title']}\n\n{row['text']}"
        for row in map(json.loads, (ROOT / "grace_retrieval/data/demo.jsonl").read_text(encoding="utf-8").splitlines())
    }
    assert len(passages) == 28
    embedder = make_embedder(short_model, max_new_tokens=None)
    documents = dict(zip(passages, embedder.encode_document(list(passages.values())), strict=True))
    for answer in content["answers"]:
        query = embedder.encode_query(answer["query"])
        scores = sorted(((float(documents[name] @ query), name) for name in passages), reverse=True)
        assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3]
        assert [hit["score"] for hit in answer["hits"]] == pytest.approx([score for score, _ in scores[:3]], abs=1e-4)
        for hit in answer["hits"]:
            (rationale,) = embedder.rationales(passages[hit["id"]], "document")
            assert hit["rationale"]["written_by"] == str(short_model)
            assert hit["rationale"]["summary"] == rationale.summary


def test_rationale(short_model: Path, make_embedder: Callable[..., Any]) -> None:
    text = "Why is the sea salty? 🌊"
    for role in ("query", "document"):
        (expected,) = make_embedder(short_model, max_new_tokens=None).rationales(text, role)
        result = grace("rationale", text, "--model", short_model, "--role", role, "--json")
        assert result.stderr == ""
        assert json.loads(result.stdout) == {
            "written_by": str(short_model),
            "role": role,
            "text": text,
            "rationale": expected.text,
            "reasoning": expected.reasoning,
            "summary": expected.summary,
            "truncated": expected.truncated,
            "repeats": expected.repeats,
            "text_truncated": False,
        }
    shown = grace("rationale", text, "--model", short_model)
    assert shown.exit_code == 0
    assert "Written by the model" in shown.stdout.replace("\n", " ")
    assert "Rationale" in shown.stdout  # without tags there is nothing to take apart
    assert "Cut off after 6 tokens" in shown.stdout


def test_rationale_from_standard_input(short_model: Path) -> None:
    options = ("--model", short_model, "--max-new-tokens", 3, "--cache", "none", "--json")
    result = grace("rationale", "-", *options, input="Grüße\nzwei\n")
    assert json.loads(result.stdout)["text"] == "Grüße\nzwei"
    result = grace("rationale", "-", *options, input=b"\xff")
    assert result.exit_code == 1
    assert "not UTF-8" in result.stderr


@pytest.mark.filterwarnings("default")
def test_warnings_are_lines_on_stderr(short_model: Path) -> None:
    result = grace("rationale", "word " * 3000, "--model", short_model, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["text_truncated"] is True
    assert result.stderr.startswith("Warning: 1 of 1 texts are longer than")
    assert result.stderr.count("\n") == 1


def test_a_model_that_is_not_known(short_model: Path) -> None:
    result = grace("rationale", "text", "--model", "nobody/no-such-model")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: Cannot load the policy 'nobody/no-such-model'")
