"""Engines of other packages: one file and one entry point, and what is built with them opens again."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from grace_retrieval import (
    GraceEmbedder,
    GraceIndex,
    InputError,
    MissingExtraError,
    ModelMismatchError,
    Policy,
    TrainablePolicy,
)
from grace_retrieval.engines.by_name import engine_names
from grace_retrieval.engines.vllm import VLLMEngine
from grace_retrieval.indexing import Document, build_index
from grace_retrieval.settings import EmbedderSettings

# Written against the documented protocol alone: stock `generate`, then a second pass over what came out.
STOCK = """
import torch
from grace_retrieval import RationaleOutput
from grace_retrieval.engines.transformers import TransformersEngine


class StockPolicy(TransformersEngine):
    family = "stock"

    def __init__(self, model, tokenizer, note):
        super().__init__(model, tokenizer=tokenizer)
        self.engine_options, self.texts = {"note": note}, 0

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


def load(source, *, note="none"):
    return StockPolicy(*source.load(), note)
"""

# A policy that knows nothing of torch: hidden states are rows of a table, and it writes what it read, backwards.
TABLE = """
import numpy as np
from transformers import AutoTokenizer
from grace_retrieval import RationaleOutput


class TablePolicy:
    family, dtype, context_length, hidden_size = "table", "float32", 256, 8

    def __init__(self, path):
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.end_tokens = frozenset([self.tokenizer.eos_token_id])
        self.table = np.random.default_rng(0).normal(size=(len(self.tokenizer), 8)).astype(np.float32)
        self.texts, self.closed = 0, False

    def weights_id(self):
        return self.table.tobytes().hex()[:32]

    def states(self, sequences):
        for place, tokens in enumerate(sequences):
            yield place, self.table[list(tokens)]

    def run(self, requests, sampling=None):
        for place, request in enumerate(requests):
            written = request.rationale_ids
            if written is None:
                written = request.input_ids[:request.prefix_length:-1][:request.max_new_tokens]
            self.texts += 1
            (_, states), = self.states([request.input_ids + written])
            yield place, RationaleOutput(
                token_ids=written, finish_reason="length", vector=states[request.prefix_length:].mean(0)
            )

    def statistics(self):
        return {"texts": self.texts}

    def close(self):
        self.closed = True


def load(source):
    return TablePolicy(source.path)
"""

DOCUMENTS = ["Tides follow the moon.", "Bread rises because yeast makes gas.", "Steam drained the mines.", ""]


def install(folder: Path, name: str, code: str) -> None:
    """A package as pip leaves it: a module, and metadata with an entry point."""
    about = folder / f"{name}_engine-1.0.dist-info"
    about.mkdir(parents=True)
    (folder / f"{name}_engine.py").write_text(code)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-engine\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[grace_retrieval.engines]\n{name} = {name}_engine:load\n")


@pytest.fixture
def stock_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "site"
    install(folder, "stock", STOCK)
    install(folder, "table", TABLE)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in ("stock_engine", "table_engine"):
        sys.modules.pop(name, None)


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
        assert index.embedder.pipeline.engine_name == "stock"
        assert dict(index.embedder.pipeline.engine_options) == {"note": "ours"}
        assert type(index.embedder.writer.engine).__name__ == "StockPolicy"
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
    assert type(copied.writer.engine).__name__ == "StockPolicy"


def test_one_that_was_put_in_place_by_hand_is_described_too(
    stock_package: Path, make_embedder: Callable[..., GraceEmbedder], tmp_path: Path
) -> None:
    by_name, by_hand = make_embedder(engine="stock", engine_options={"note": "x"}), make_embedder()
    by_hand.writer.engine = by_name.writer.engine
    build_index([Document(id="a", text="Tides.")], tmp_path / "index", embedder=by_hand)
    assert GraceIndex.open(tmp_path / "index").search("moon").ids == ["a"]


def test_a_policy_that_is_no_torch_module_embeds_explains_indexes_and_is_reopened(
    stock_package: Path, tiny_policy: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "policy"  # without weights: nothing but the policy itself is to load any
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_policy / name, folder)
    embedder = GraceEmbedder(folder, engine="table", cache="memory", max_new_tokens=3, max_seq_length=200)
    assert isinstance(embedder.pipeline.policy, Policy) and not isinstance(embedder.pipeline.policy, TrainablePolicy)
    assert embedder.writer.model is None and not list(embedder.parameters())
    found = embedder.encode_with_rationales(DOCUMENTS, "document")
    np.testing.assert_array_equal(found.vectors, embedder.encode_document(DOCUMENTS))
    assert found.rationales == embedder.rationales(DOCUMENTS, "document")
    assert [len(rationale.token_ids) for rationale in found.rationales] == [3, 3, 3, 0]
    assert embedder.pipeline.counts == {"generated": 3, "found": 6}
    explanation = embedder.explain(DOCUMENTS[0], DOCUMENTS[0])
    assert abs(explanation.document.contributions.sum() - explanation.score) < 1e-9
    prefix = len(embedder.writer.prompt(None).prefix_ids)
    states = embedder.encode(DOCUMENTS[0], output_value="token_embeddings")[prefix:]
    np.testing.assert_allclose(
        states.mean(0) / np.linalg.norm(states.mean(0)), embedder.encode(DOCUMENTS[0]), atol=1e-6
    )
    documents = [Document(id=str(place), text=text) for place, text in enumerate(DOCUMENTS)]
    build_index(documents, tmp_path / "index", embedder=embedder)
    with GraceIndex.open(tmp_path / "index") as index:
        assert index.embedder.pipeline.policy.family == "table"
        assert (
            index.search(DOCUMENTS[1], k=3).ids
            == GraceIndex.open(tmp_path / "index", embedder=embedder).search(DOCUMENTS[1], k=3).ids
        )
    copied = pickle.loads(pickle.dumps(embedder))
    np.testing.assert_array_equal(copied.encode_document(DOCUMENTS), found.vectors)
    with pytest.raises(InputError, match="engine='table' gives no gradients"):
        embedder(embedder.preprocess(DOCUMENTS))
    with pytest.raises(InputError, match="cannot be saved from here"):
        embedder.save_pretrained(str(tmp_path / "saved"))


def test_a_policy_that_lacks_a_part_is_refused(stock_package: Path, tiny_policy: Path) -> None:
    (stock_package / "table_engine.py").write_text(TABLE.replace("def close", "def shut"))
    with pytest.raises(InputError, match="gave TablePolicy, which lacks close of a Policy"):
        GraceEmbedder(tiny_policy, engine="table", cache=None)


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
    assert grace("demo", "--model", str(tiny_policy), "--engine", "stock", "--cache", "none").returncode == 0
    beir = tmp_path / "beir"
    (beir / "qrels").mkdir(parents=True)
    (beir / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": str(i), "text": text}) + "\n" for i, text in enumerate(DOCUMENTS[:3]))
    )
    (beir / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "moon"}) + "\n")
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\t0\t1\n")
    measured = grace(
        "bench", "retrieval", "--data", str(beir), "--model", str(tiny_policy), "--columns", "bm25,text",
        "--device", "cpu", "--cache", "none", "--engine", "stock", "--engine-option", "note=x", 
        "--out", str(tmp_path / "rows"),
    )  # fmt: skip
    assert measured.returncode == 0, measured.stderr
    rows = [json.loads(line) for line in (tmp_path / "rows" / "retrieval.jsonl").read_text().splitlines()]
    assert [(row["column"], row.get("engine"), row.get("engine_options")) for row in rows] == [
        ("bm25", None, None), ("text", "stock", {"note": "x"}),
    ]  # fmt: skip
    wrong = grace("index", "build", str(corpus), "--out", folder + "2", *options, "--engine", "stok")
    assert wrong.returncode == 1
    assert "engine='stok': give one of llama-cpp, stock, table, transformers, vllm" in wrong.stderr


def test_the_default_is_not_written_down(make_embedder: Callable[..., GraceEmbedder], tmp_path: Path) -> None:
    """What was written before engines had names reads the same, and so do manifests."""
    build_index([Document(id="a", text="Tides.")], tmp_path / "index", embedder=make_embedder())
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert set(manifest["embedder"]) == {
        "model", "prompts", "max_new_tokens", "max_seq_length", "temperature", "top_p", "top_k", "seed",
        "stop_repeats", "max_sentences", "truncate_dim", "dtype",
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
    assert GraceIndex.open(tmp_path / "index").embedder.pipeline.source.hub["revision"] == "v1"
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
