"""`grace cache`: what it shows, copies, checks and removes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from typer.testing import CliRunner

from grace_retrieval.cache import CachedRationale, Fingerprint, SQLiteCache
from grace_retrieval.cli import app

if TYPE_CHECKING:
    from click.testing import Result

FINGERPRINTS = [
    Fingerprint(
        model=f"/models/{name}",
        weights="aa",
        tokenizer="bb",
        prompt="Read the text, and then say what it is about in a sentence or two.",
        role=role,
        generation={},
        budget={},
        dtype="float32",
        engine="transformers",
    )
    for name, role in (("large", "query"), ("large", "document"))
]
TEXTS = ["plain", "日本語 🦊", "half a character \ud83d", "<think>a</think> b"]


def grace(*arguments: object, input: str | None = None) -> Result:
    return CliRunner().invoke(app, ["cache", *map(str, arguments)], input=input)


@pytest.fixture
def path(grace_cache_dir: Path) -> Path:
    """The default cache, with 4 rows of one fingerprint and 2 of another."""
    path = grace_cache_dir / "rationales.sqlite"
    with SQLiteCache(path) as cache:
        for number, (fingerprint, count) in enumerate(zip(FINGERPRINTS, (4, 2), strict=True)):
            cache.register(fingerprint)
            rows = {
                bytes([number, index]) + bytes(14): CachedRationale(
                    token_ids=(index, 7), text=TEXTS[index], finish_reason="stop", vector=np.full(3, 0.1, np.float32)
                )
                for index in range(count)
            }
            cache.put_many(rows, fingerprint=fingerprint.digest())
    return path


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    at = content.index(b"plain")
    content[at : at + 5] = b"PLAIN"
    path.write_bytes(content)


def test_a_missing_cache_is_empty_and_not_made(grace_cache_dir: Path, tmp_path: Path) -> None:
    path = grace_cache_dir / "rationales.sqlite"
    assert grace("path").stdout == f"{path}\n"
    assert json.loads(grace("path", "--json").stdout) == {"path": str(path), "exists": False}
    assert grace("path", "--cache", tmp_path / "x.db").stdout == f"{tmp_path / 'x.db'}\n"
    assert grace("stats").stdout == f"The cache {path} is empty.\n"
    assert json.loads(grace("stats", "--json").stdout)["rows"] == 0
    assert grace("verify").exit_code == 0
    assert grace("clear").stdout == f"Removed 0 rationales from {path}.\n"
    missing = grace("export", tmp_path / "out.jsonl")
    assert missing.exit_code == 1
    assert "nothing to export" in missing.stderr
    assert not grace_cache_dir.exists()


def test_stats(path: Path) -> None:
    result = grace("stats")
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines() if "large" in line]
    assert [line[:3] for line in lines] == [
        [FINGERPRINTS[0].digest().hex()[:12], "large", "query"],
        [FINGERPRINTS[1].digest().hex()[:12], "large", "document"],
    ]
    assert "6 rationales" in result.stdout
    assert str(path) in result.stdout
    content = json.loads(grace("stats", "--json").stdout)
    assert content["rows"] == 6
    assert [(group["rows"], group["description"]["role"]) for group in content["by_fingerprint"]] == [
        (4, "query"),
        (2, "document"),
    ]


def test_export(path: Path, tmp_path: Path) -> None:
    result = grace("export", tmp_path / "out.jsonl", "--json")
    assert json.loads(result.stdout) == {"output": str(tmp_path / "out.jsonl"), "rows": 6}
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="ascii").splitlines()]
    assert [row["rationale"] for row in rows] == TEXTS + TEXTS[:2]
    assert rows[1]["token_ids"] == [1, 7]
    assert rows[0]["fingerprint"] == FINGERPRINTS[0].digest().hex()
    assert np.array_equal(np.float32(rows[0]["vector"]), np.full(3, 0.1, np.float32))
    again = grace("export", tmp_path / "out.jsonl")
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    assert grace("export", tmp_path / "out.jsonl", "--overwrite", "--no-vectors").exit_code == 0
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert len(lines) == 6
    assert all("vector" not in json.loads(line) for line in lines)
    assert [json.loads(line)["rationale"] for line in grace("export", "-").stdout.splitlines()] == TEXTS + TEXTS[:2]


def test_export_to_places_that_cannot_be_written(path: Path, tmp_path: Path) -> None:
    for output, complaint in ((tmp_path, "is a folder"), (tmp_path / "no" / "out.jsonl", "No such file")):
        result = grace("export", output)
        assert result.exit_code == 1
        assert complaint in result.stderr
    assert "give a file" in grace("export", "-", "--json").stderr


def test_verify(path: Path) -> None:
    assert json.loads(grace("verify", "--json").stdout) == {"path": str(path), "ok": True, "rows": 6, "problems": []}
    damage(path)
    result = grace("verify")
    assert result.exit_code == 1
    assert "1 problems" in result.stdout
    assert result.stderr == ""
    content = json.loads(grace("verify", "--json").stdout)
    assert (content["ok"], len(content["problems"])) == (False, 1)


def test_a_failed_export_leaves_nothing(path: Path, tmp_path: Path) -> None:
    damage(path)
    result = grace("export", tmp_path / "out.jsonl")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert not list(tmp_path.glob("out*"))


def test_clear_asks(path: Path) -> None:
    for answer in ("n\n", ""):
        result = grace("clear", input=answer)
        assert result.exit_code == 1
        assert "Nothing was removed" in result.stderr
        assert result.stdout == ""
    assert json.loads(grace("stats", "--json").stdout)["rows"] == 6
    result = grace("clear", "--json", input="y\n")
    assert json.loads(result.stdout) == {"path": str(path), "removed": 6}
    assert json.loads(grace("stats", "--json").stdout)["rows"] == 0


def test_clear_one_fingerprint(path: Path) -> None:
    digest = FINGERPRINTS[0].digest().hex()
    for wrong in ("ffffffff", digest[:3], "xyz!"):
        result = grace("clear", "--yes", "--fingerprint", wrong)
        assert result.exit_code == 1
        assert digest[:12] in result.stderr
    assert "Removed 4 rationales" in grace("clear", "--yes", "--fingerprint", digest[:8].upper()).stdout
    assert json.loads(grace("stats", "--json").stdout)["rows"] == 2


def test_clear_removes_a_damaged_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])
    assert grace("stats").exit_code == 1
    assert grace("verify").exit_code == 1
    assert grace("clear", "--yes").exit_code == 0
    assert grace("stats").exit_code == 0


@pytest.mark.parametrize("command", ["stats", "verify", "clear", "path"])
def test_words_that_are_no_path(command: str) -> None:
    result = grace(command, "--cache", "none")
    assert result.exit_code == 1
    assert "cache=" in result.stderr and ": give " in result.stderr
