"""Engines of other packages: one file and one entry point, and what is built with them opens again."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from grace_retrieval import GraceEmbedder, GraceIndex, InputError, MissingExtraError, ModelMismatchError
from grace_retrieval.engines.by_name import engine_names
from grace_retrieval.engines.vllm import VLLMEngine
from grace_retrieval.indexing import Document, build_index
from grace_retrieval.settings import EmbedderSettings

# Written against the documented protocol alone: stock `generate`, then a second pass over what came out.
STOCK = """
import torch
from grace_retrieval import RationaleOutput


class StockEngine:
    family = "stock"

    def __init__(self, policy, note):
        self.model, self.end_tokens, self.texts = policy.model, policy.end_tokens, 0
        self.engine_options = {"note": note}

    @property
    def dtype(self):
        return str(self.model.dtype).removeprefix("torch.")

    def statistics(self):
        return {"texts": self.texts, "prompt_tokens": 0, "new_tokens": 0, "forward_passes": 0}

    @torch.inference_mode()
    def run(self, requests, sampling=None):
        for place, request in enumerate(requests):
            ids, written, reason = torch.tensor([request.input_ids]), request.rationale_ids or (), "given"
            if request.rationale_ids is None and request.max_new_tokens:
                out = self.model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
                    max_new_tokens=request.max_new_tokens, eos_token_id=list(self.end_tokens),
                )
                written = tuple(out[0, ids.shape[1]:].tolist())
                reason = "stop" if written[-1] in self.end_tokens else "length"
                written = written[:-1] if reason == "stop" else written
            states = self.model.base_model(input_ids=torch.tensor([request.input_ids + written])).last_hidden_state
            self.texts += 1
            vector = states[0, request.prefix_length:].float().mean(0).numpy()
            yield place, RationaleOutput(token_ids=written, finish_reason=reason, vector=vector)


def make(policy, *, note="none"):
    return StockEngine(policy, note)
"""

DOCUMENTS = ["Tides follow the moon.", "Bread rises because yeast makes gas.", "Steam drained the mines.", ""]


@pytest.fixture
def stock_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package as pip leaves it: a module, and metadata with an entry point."""
    folder = tmp_path / "site"
    about = folder / "stock_engine-1.0.dist-info"
    about.mkdir(parents=True)
    (folder / "stock_engine.py").write_text(STOCK)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: stock-engine\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[grace_retrieval.engines]\nstock = stock_engine:make\n")
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("stock_engine", None)


@pytest.fixture
def stock(stock_package: Path, make_embedder: Callable[..., GraceEmbedder]) -> GraceEmbedder:
    return make_embedder(engine="stock", engine_options={"note": "ours"})


def test_it_is_found_and_gives_the_vectors_of_the_default_engine(
    stock: GraceEmbedder, make_embedder: Callable[..., GraceEmbedder]
) -> None:
    assert "stock" in engine_names()
    default = make_embedder()
    np.testing.assert_allclose(stock.encode_document(DOCUMENTS), default.encode_document(DOCUMENTS), atol=1e-5)
    assert stock.writer.engine.statistics()["texts"] == 3, "the blank text is not shown to it"
    assert stock.rationales(DOCUMENTS[:3], "document") == default.rationales(DOCUMENTS[:3], "document")
    assert stock.fingerprint("query").engine == "stock"
    explanation = stock.explain("moon", DOCUMENTS[0])
    assert abs(explanation.document.contributions.sum() - explanation.score) < 1e-9
    assert abs(explanation.score - float(stock.encode_query("moon") @ stock.encode_document(DOCUMENTS[0]))) < 1e-5


def test_an_index_that_was_built_with_it_opens_again(stock: GraceEmbedder, tmp_path: Path) -> None:
    documents = [Document(id=str(place), text=text) for place, text in enumerate(DOCUMENTS)]
    build_index(documents, tmp_path / "index", embedder=stock)
    with GraceIndex.open(tmp_path / "index") as index:
        hits = index.search(DOCUMENTS[1], k=3).hits
        assert index.embedder is not stock
        assert index.embedder.writer.engine_name == "stock"
        assert dict(index.embedder.writer.engine_options) == {"note": "ours"}
        assert type(index.embedder.writer.engine).__name__ == "StockEngine"
    assert {hit.id for hit in hits} == {"0", "1", "2"}
    # More documents are embedded by the same engine, and another engine's are refused.
    build_index([Document(id="9", text="Glass is sand.")], tmp_path / "index", embedder=stock, mode="add")
    assert len(GraceIndex.open(tmp_path / "index")) == 5


def test_another_engine_is_refused_by_name(
    stock: GraceEmbedder, make_embedder: Callable[..., GraceEmbedder], tmp_path: Path
) -> None:
    build_index([Document(id="a", text="Tides.")], tmp_path / "index", embedder=stock)
    with pytest.raises(ModelMismatchError, match="engine: 'transformers' here, 'stock' there"):
        GraceIndex.open(tmp_path / "index", embedder=make_embedder())


def test_settings_and_copies_keep_it(stock: GraceEmbedder) -> None:
    vector = stock.embed_query("why are there tides")
    settings = pickle.loads(pickle.dumps(EmbedderSettings.of(stock)))
    assert (settings.engine, settings.engine_options) == ("stock", {"note": "ours"})
    assert settings.embedder is not stock
    assert settings.embed_query("why are there tides") == vector
    copied = pickle.loads(pickle.dumps(stock))
    assert copied.embed_query("why are there tides") == vector
    assert type(copied.writer.engine).__name__ == "StockEngine"


def test_one_that_was_put_in_place_by_hand_is_described_too(
    stock_package: Path, make_embedder: Callable[..., GraceEmbedder], tmp_path: Path
) -> None:
    by_name, by_hand = make_embedder(engine="stock", engine_options={"note": "x"}), make_embedder()
    by_hand.writer.engine = by_name.writer.engine
    build_index([Document(id="a", text="Tides.")], tmp_path / "index", embedder=by_hand)
    assert GraceIndex.open(tmp_path / "index").search("moon").ids == ["a"]


def test_the_command_line_builds_adds_and_searches_with_it(
    stock_package: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(DOCUMENTS[:3])))
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"id": "9", "text": "Glass is made of sand."}) + "\n")

    def grace(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "grace_retrieval", *arguments],
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(stock_package), *sys.path])},
        )

    folder = str(tmp_path / "index")
    options = ("--model", str(tiny_policy), "--max-new-tokens", "4", "--device", "cpu")
    built = grace(
        "index", "build", str(corpus), "--out", folder, *options, "--engine", "stock", "--engine-option", "note=x"
    )
    assert built.returncode == 0, built.stderr
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert (manifest["embedder"]["engine"], manifest["embedder"]["engine_options"]) == ("stock", {"note": "x"})
    added = grace("index", "add", str(more), "--out", folder)
    assert added.returncode == 0, added.stderr
    found = grace("index", "search", folder, "moon", "--json")
    assert found.returncode == 0, found.stderr
    assert len(json.loads(found.stdout)["hits"]) == 4
    wrong = grace("index", "build", str(corpus), "--out", folder + "2", *options, "--engine", "stok")
    assert wrong.returncode == 1
    assert "engine='stok': give one of stock, transformers, vllm" in wrong.stderr


def test_the_default_is_not_written_down(make_embedder: Callable[..., GraceEmbedder], tmp_path: Path) -> None:
    """What was written before engines had names reads the same, and so do manifests."""
    build_index([Document(id="a", text="Tides.")], tmp_path / "index", embedder=make_embedder())
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert set(manifest["embedder"]) == {
        "model", "prompts", "max_new_tokens", "max_seq_length", "temperature", "top_p", "top_k", "seed",
        "truncate_dim", "dtype",
    }  # fmt: skip


def test_options_of_the_default_engine_are_kept(make_embedder: Callable[..., GraceEmbedder], tmp_path: Path) -> None:
    embedder = make_embedder(engine_options={"draft": False, "max_batch_rows": 2})
    assert (embedder.writer.engine.draft, embedder.writer.engine.max_batch_rows) == (False, 2)  # type: ignore[attr-defined]
    build_index([Document(id="a", text="Tides.")], tmp_path / "index", embedder=embedder)
    assert GraceIndex.open(tmp_path / "index").embedder.writer.engine.draft is False  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "stok"}, "give one of .*transformers, vllm"),
        ({"engine": None}, "give one of"),
        ({"engine_options": {"drafts": 1}}, "Its options: max_batch_rows, draft"),
        ({"engine_options": {"draft": float("nan")}}, "JSON values"),
        ({"engine_options": [1]}, "give a dict"),
        ({"engine_options": {"max_batch_rows": 0}}, "give a positive number"),
        ({"backend": "onnx"}, "backend='onnx'"),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GraceEmbedder("grace-nano", cache=None, **arguments)  # type: ignore[arg-type]


def test_vllm_by_name_says_at_once_that_it_is_missing() -> None:
    try:
        import vllm  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(MissingExtraError, match="vllm"):
            GraceEmbedder("grace-nano", cache=None, engine="vllm")
    else:
        pytest.skip("vLLM is installed")
    assert VLLMEngine.family == "vllm"


def test_the_revision_is_written_down(make_embedder: Callable[..., GraceEmbedder], tmp_path: Path) -> None:
    embedder = make_embedder(revision="v1")  # a folder has but one; a hub's name would be loaded at this one
    build_index([Document(id="a", text="Tides.")], tmp_path / "index", embedder=embedder)
    assert json.loads((tmp_path / "index" / "manifest.json").read_text())["embedder"]["revision"] == "v1"
    assert GraceIndex.open(tmp_path / "index").embedder.writer.revision == "v1"
    assert EmbedderSettings.of(embedder).revision == "v1"


def test_the_old_meaning_of_the_option_still_works_and_given_vectors_take_no_engine(
    tmp_path: Path,
) -> None:
    from typer.testing import CliRunner

    from grace_retrieval.cli import app

    np.save(tmp_path / "vectors.npy", np.eye(2, dtype=np.float32))
    (tmp_path / "corpus.txt").write_text("Tides follow the moon.\nBread rises.\n")
    given = ["index", "build", str(tmp_path / "corpus.txt"), "--vectors", str(tmp_path / "vectors.npy"), "--out"]
    old = CliRunner().invoke(app, [*given, str(tmp_path / "a"), "--engine", "local"])
    assert old.exit_code == 0
    assert "--engine local is now --runner local" in old.stderr
    assert CliRunner().invoke(app, [*given, str(tmp_path / "b"), "--runner", "local"]).stderr == ""
    refused = CliRunner().invoke(app, [*given, str(tmp_path / "c"), "--engine", "vllm"])
    assert refused.exit_code == 1
    assert "given vectors need no engine" in refused.stderr
