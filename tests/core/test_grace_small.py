"""grace-small: an adapter that ships, on a policy that is fetched."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import grace_retrieval
from grace_retrieval import GraceEmbedder, ModelLoadError
from grace_retrieval.fetching import FETCHED_MODELS, find_fetched
from grace_retrieval.gguf.header import hash_file

SMALL = Path(grace_retrieval.__file__).parent / "models" / "grace-small"
BASE = "SmolLM2-135M-Instruct"
BREAD, TIDES = "Bread rises because yeast turns sugar into gas.", "The moon pulls the oceans, which makes tides."


@pytest.fixture
def base(grace_small: None) -> Path:
    """The policy's file."""
    found = find_fetched(BASE)
    assert found is not None
    return found


def test_it_is_small_and_holds_no_code() -> None:
    files = [path for path in SMALL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}
    assert json.loads((SMALL / "adapter_config.json").read_text())["base_model_name_or_path"] == BASE
    assert not [path for path in files if "/tmp" in path.read_text(errors="ignore") and path.suffix == ".json"]


def test_it_was_trained_on_what_is_fetched(base: Path) -> None:
    identity = json.loads((SMALL / "grace_base.json").read_text())["identity"]
    assert identity == f"gguf-{hash_file(base)}"
    assert FETCHED_MODELS[BASE].writes


def test_it_writes_and_finds(base: Path) -> None:
    embedder = GraceEmbedder("grace-small", cache=None, device="cpu")
    documents = embedder.encode_document([BREAD, TIDES], rationale=False)
    queries = embedder.encode_query(["Why does dough grow?", "What moves the sea?"], rationale=False)
    assert np.argmax(queries @ documents.T, axis=1).tolist() == [0, 1]
    written = embedder.rationales([BREAD, TIDES], "document")
    assert all(row.text and not row.truncated for row in written)
    assert embedder.fingerprint().weights.startswith("adapter-")


def test_an_adapter_of_other_weights_is_refused(base: Path, tmp_path: Path) -> None:
    shutil.copytree(SMALL, tmp_path / "other")
    (tmp_path / "other" / "grace_base.json").write_text(json.dumps({"identity": "gguf-" + "0" * 64}))
    with pytest.raises(ModelLoadError, match=f"was trained on gguf-{'0' * 64}, and .* is gguf-"):
        GraceEmbedder(tmp_path / "other", cache=None)


def test_an_adapter_that_is_cut_short_is_refused(base: Path, tmp_path: Path) -> None:
    shutil.copytree(SMALL, tmp_path / "cut")
    whole = (SMALL / "adapter_model.safetensors").read_bytes()
    (tmp_path / "cut" / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelLoadError, match="damaged"):
        GraceEmbedder(tmp_path / "cut", cache=None)


def test_without_the_policy_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRACE_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("GRACE_OFFLINE", "1")
    options: dict[str, Any] = {"cache": None}
    with pytest.raises(ModelLoadError, match=f"grace fetch {BASE}(.|\n)*grace-nano"):
        GraceEmbedder("grace-small", **options)


def test_it_is_what_is_used_where_no_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from grace_retrieval.bundled import chosen_model

    for made in (GraceEmbedder.__init__, grace_retrieval.shared_embedder):
        assert inspect.signature(made).parameters["model"].default == "grace-small"
    assert inspect.signature(grace_retrieval.GraceIndex.build).parameters["embedder"].default == "grace-small"
    monkeypatch.delenv("GRACE_MODEL")
    assert chosen_model(None) == "grace-small" and chosen_model("mine") == "mine"
    monkeypatch.setenv("GRACE_MODEL", "another")
    assert chosen_model(None) == "another" and chosen_model("mine") == "mine"


@pytest.mark.parametrize(
    "command", [["demo"], ["rationale", "Tides follow the moon."], ["explain", "moon", "Tides."]], ids=lambda c: c[0]
)
def test_a_command_without_the_policy_says_what_to_do(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from grace_retrieval.cli import app

    monkeypatch.delenv("GRACE_MODEL")
    environment = {"GRACE_CACHE_DIR": str(tmp_path), "GRACE_OFFLINE": "1", "COLUMNS": "1000"}
    result = CliRunner().invoke(app, command, env=environment)
    assert result.exit_code == 1
    assert f"grace fetch {BASE}" in result.stderr and "--model grace-nano" in result.stderr, result.stderr


def test_the_demo_finds_what_it_should(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from grace_retrieval.cli import app

    monkeypatch.delenv("GRACE_MODEL")
    result = CliRunner().invoke(app, ["demo", "--json", "--no-cache"])
    found = json.loads(result.stdout)
    assert found["model"] == "grace-small"
    assert [answer["hits"][0]["id"] for answer in found["answers"]] == ["yeast", "antibiotics", "tides"]
