"""What an earlier version made opens: its cache, its index, its saved model; see tests/fixtures/before/README.txt.

It knew no `stop_repeats`: what it made is told from what is made with it, and found again without.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from grace_retrieval import GraceEmbedder, GraceIndex, VectorIdentity
from grace_retrieval.indexing import Document, build_index
from grace_retrieval.indexing.verification import verify_index

BEFORE = Path(__file__).parents[1] / "fixtures" / "before"
DESCRIBED: dict[str, Any] = json.loads((BEFORE / "described.json").read_text(encoding="utf-8"))
TEXTS, QUERIES = DESCRIBED["texts"], DESCRIBED["queries"]
VECTORS = dict(np.load(BEFORE / "vectors.npz"))

ROUNDING = 1e-6
"""On the processor that made them vectors are equal bit for bit; others may round otherwise."""


@pytest.fixture
def index(tmp_path: Path, tiny_policy: Path) -> Path:
    """The index, where its model is where its manifest says."""
    shutil.copytree(BEFORE / "index", tmp_path / "index")
    path = tmp_path / "index" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["embedder"]["model"] = str(tiny_policy)
    path.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return tmp_path / "index"


def test_its_cache_has_every_rationale(make_embedder: Callable[..., GraceEmbedder], tmp_path: Path) -> None:
    shutil.copy(BEFORE / "rationales.sqlite", tmp_path)
    embedder = make_embedder(cache=tmp_path / "rationales.sqlite", stop_repeats=False)
    for name, found in {
        "documents": embedder.encode_document(TEXTS),
        "queries": embedder.encode_query(QUERIES),
        "texts": embedder.encode(TEXTS),
        "documents_alone": embedder.encode_document(TEXTS, rationale=False),
    }.items():
        np.testing.assert_array_equal(found, VECTORS[name], err_msg=name)
    assert [rationale.text for rationale in embedder.rationales(TEXTS, "document")] == DESCRIBED["rationales"]
    assert embedder.pipeline.engine.statistics()["texts"] == 0, "nothing was generated again"
    stopped = make_embedder(cache=tmp_path / "rationales.sqlite")
    stopped.encode_document(TEXTS)
    assert stopped.pipeline.engine.statistics()["texts"] == len(set(filter(str.strip, TEXTS)))


def test_identities_are_those_of_before(make_embedder: Callable[..., GraceEmbedder]) -> None:
    embedder = make_embedder(stop_repeats=False)
    for role in ("document", "query"):
        now, then = embedder.fingerprint(role).describe(), DESCRIBED[role]  # type: ignore[arg-type]
        assert {**now, "model": ""} == {**then, "model": ""}
    assert embedder.vector_identity().digest() == DESCRIBED["vectors"]


def test_vectors_are_those_of_before(make_embedder: Callable[..., GraceEmbedder]) -> None:
    embedder = make_embedder()
    np.testing.assert_allclose(embedder.encode_document(TEXTS), VECTORS["documents"], atol=ROUNDING)
    np.testing.assert_allclose(embedder.encode_query(QUERIES), VECTORS["queries"], atol=ROUNDING)
    together = embedder.encode_with_rationales(TEXTS, "document")
    np.testing.assert_allclose(together.vectors, VECTORS["documents"], atol=ROUNDING)
    alone = embedder.encode_with_rationales(TEXTS, "document", rationale=False)
    np.testing.assert_allclose(alone.vectors, VECTORS["documents_alone"], atol=ROUNDING)


def test_its_index_opens_is_whole_is_searched_and_added_to(index: Path) -> None:
    expected = json.loads((BEFORE / "hits.json").read_text(encoding="utf-8"))
    with GraceIndex.open(index) as opened:
        assert not verify_index(index).problems
        hits = opened.search(expected["query"], k=len(expected["hits"])).hits
        assert [hit.id for hit in hits] == [hit["id"] for hit in expected["hits"]]
        for hit, then in zip(hits, expected["hits"], strict=True):
            assert (hit.text, hit.metadata) == (then["text"], then["metadata"])
            assert hit.score == pytest.approx(then["score"], abs=1e-5)
        embedder = opened.embedder
    build_index([Document(id="9", text="Glass is sand.")], index, embedder=embedder, mode="add")
    with GraceIndex.open(index) as opened:
        assert len(opened) == 5 and "9" in opened.search("glass", k=5).ids


def test_its_saved_model_opens(tmp_path: Path, tiny_policy: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(BEFORE / "model", folder)
    shutil.copy(tiny_policy / "model.safetensors", folder)
    embedder = GraceEmbedder(folder, cache=None, device="cpu")
    assert embedder.max_seq_length == 1024 and embedder.pipeline.options.max_new_tokens == 8
    np.testing.assert_allclose(embedder.encode_document(TEXTS), VECTORS["documents"], atol=ROUNDING)
    assert embedder.vector_identity().digest() == DESCRIBED["vectors"]
    embedder.save_pretrained(str(tmp_path / "again"))
    for name in ("modules.json", "grace_config.json"):
        assert json.loads((tmp_path / "again" / name).read_text()) == json.loads((folder / name).read_text())


def test_embedded_texts_have_the_same_columns_and_identity(make_embedder: Callable[..., GraceEmbedder]) -> None:
    table = pq.read_table(BEFORE / "embedded.parquet")
    assert table.column_names == ["id", "text", "rationale", "truncated", "vector"]
    described = json.loads(table.schema.metadata[b"grace"])["fingerprint"]
    assert make_embedder(stop_repeats=False).fingerprint("document").digest().hex() == described["digest"]
    vectors = np.stack(table["vector"].to_numpy(zero_copy_only=False))
    np.testing.assert_allclose(vectors, VECTORS["documents"], atol=ROUNDING)
    assert VectorIdentity.from_description(make_embedder(stop_repeats=False).vector_identity().describe())
