"""Environment, configuration file, logs and completion of the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grace_retrieval import GraceIndex
from grace_retrieval.cli import app

BASE = ["--cache", "none"]


def grace(*arguments: str | Path, **environment: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment)
    return result.exit_code, result.stdout, result.stderr


def test_the_environment_names_model_and_device(tiny_policy: Path) -> None:
    environment = {"GRACE_MODEL": str(tiny_policy), "GRACE_DEVICE": "cpu"}
    code, out, _ = grace("rationale", "tides", "--max-new-tokens", "2", *BASE, **environment)
    assert code == 0 and str(tiny_policy) in out
    code, _, error = grace("rationale", "tides", *BASE, GRACE_DEVICE="abacus")
    assert code == 1 and "device='abacus'" in error
    # What is given comes first.
    code, out, _ = grace("rationale", "tides", "--model", "grace-nano", *BASE, **environment)
    assert code == 0 and "by the model grace-nano" in out and "Reasoning" in out and "Summary" in out


def test_a_configuration_file_gives_options_and_the_command_line_comes_first(tmp_path: Path, tiny_policy: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"id": "a", "body": "Tides.", "lang": "en", "n": 1}\n', encoding="utf-8")
    config = tmp_path / "nightly.yaml"
    config.write_text(
        f"inputs: [{tmp_path / 'corpus.jsonl'}]\nout: {tmp_path / 'index'}\nmodel: {tiny_policy}\n"
        "text-column: nothing\nmetadata: [lang]\nmax_new_tokens: 2\nquiet: true\ncache: none\ndevice: cpu\n",
        encoding="utf-8",
    )
    code, out, error = grace("index", "build", "--config", config, "--text-column", "body")
    assert code == 0 and out == "", error
    with GraceIndex.open(tmp_path / "index") as index:
        assert index.get("a").metadata == {"lang": "en"} and index.manifest.embedder is not None
        assert index.manifest.embedder["max_new_tokens"] == 2
    code, _, error = grace("embed", tmp_path / "corpus.jsonl", tmp_path / "out.npy", "--config", config)
    assert code == 1 and "no such option" in error, "an option of another command"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text-colum: body", r"text-colum='body': no such option. Did you mean text-column"),
        ("[a, b]", "give a mapping from options to values"),
        ("a: [", "while parsing"),
        ("config: x.yaml", "no such option"),
    ],
)
def test_what_is_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    code, _, error = grace("embed", "in.jsonl", "out.npy", "--config", tmp_path / "c.yaml")
    assert code == 1 and message in error and error.count("\n") == 1


def test_verbose_says_what_was_loaded_and_json_lines_say_everything(tiny_policy: Path) -> None:
    command = ("rationale", "tides", "--max-new-tokens", "2", "--device", "cpu", *BASE)
    _, _, error = grace("--verbose", *command, "--model", tiny_policy)
    assert f"loaded {tiny_policy}" in error and "on cpu" in error
    _, _, error = grace("--json-log", "--verbose", *command, "--model", tiny_policy)
    lines = [json.loads(line) for line in error.splitlines()]
    assert [line["level"] for line in lines] == ["info"] and "loaded" in lines[0]["message"] and lines[0]["time"]
    _, _, error = grace("--json-log", *command, "--model", "./nowhere")
    (line,) = [json.loads(line) for line in error.splitlines()]
    assert line["level"] == "error" and "nowhere" in line["message"]
    _, _, error = grace(*command, "--model", tiny_policy)
    assert error == "", "the next command is quiet again"


def test_completion_is_offered() -> None:
    code, out, _ = grace("--help")
    assert code == 0 and "--install-completion" in out


def test_queries_of_a_file_are_searched_at_once(tmp_path: Path, tiny_policy: Path) -> None:
    index = GraceIndex.build(
        [{"id": "a", "text": "Tides follow the moon."}, {"id": "b", "text": "Bread rises."}], tmp_path / "index",
        embedder=str(tiny_policy),
    )  # fmt: skip
    (tmp_path / "q.jsonl").write_text('{"id": "q1", "text": "moon"}\n{"id": "q2", "text": "bread"}\n', encoding="utf-8")
    command = ("index", "search", tmp_path / "index", "-k", "1", "--device", "cpu", *BASE)
    code, out, error = grace(*command, "--queries", tmp_path / "q.jsonl", "--json")
    found = json.loads(out)["queries"]
    assert code == 0 and [(entry["id"], entry["query"]) for entry in found] == [("q1", "moon"), ("q2", "bread")], error
    direct = index.search(["moon", "bread"], k=1)
    assert [[hit["id"] for hit in entry["hits"]] for entry in found] == [result.ids for result in direct]
