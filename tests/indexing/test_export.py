"""Copies of an index, opened and searched by the stores themselves."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from grace_retrieval import GraceIndex, InputError, MissingExtraError
from grace_retrieval.indexing import Document, hybrid
from grace_retrieval.indexing.encoders import GivenVectors
from grace_retrieval.indexing.export import export_faiss, export_lancedb, export_qdrant
from grace_retrieval.indexing.plan import ShardTask
from grace_retrieval.indexing.runners import RayRunner
from grace_retrieval.indexing.workspace import Workspace
from tests.indexing.conftest import make_documents, unit

_TASK = ShardTask(name="000000-0.parquet", rows=1, input=Path("in.parquet"))
QUERY = np.random.default_rng(4).standard_normal(16).astype(np.float32)


@pytest.fixture
def index(build: Callable[..., Path]) -> GraceIndex:
    documents = make_documents(130)
    documents[7] = Document(id="blank", text=" ", vector=np.zeros(16, np.float32))
    return GraceIndex.open(build(documents))


def test_faiss(index: GraceIndex, tmp_path: Path) -> None:
    import faiss

    assert export_faiss(index, tmp_path / "out") == 130
    ids = json.loads((tmp_path / "out" / "ids.json").read_text())
    scores, rows = faiss.read_index(str(tmp_path / "out" / "index.faiss")).search(unit(QUERY)[None], 5)
    found = index.search_vectors(QUERY, k=5)[0]
    assert [ids[row] for row in rows[0]] == found.ids
    np.testing.assert_allclose(scores[0], found.scores, atol=1e-6)
    with pytest.raises(InputError, match="is not empty"):
        export_faiss(index, tmp_path / "out")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:lancedb")
def test_lancedb(index: GraceIndex, tmp_path: Path) -> None:
    lancedb = pytest.importorskip("lancedb")
    assert export_lancedb(index, tmp_path / "out") == 130
    table = lancedb.connect(tmp_path / "out").open_table("documents")
    rows = table.search(unit(QUERY)).distance_type("dot").limit(5).to_list()
    found = index.search_vectors(QUERY, k=5)[0]
    assert [row["id"] for row in rows] == found.ids
    assert [row["text"] for row in rows] == found.documents
    assert json.loads(rows[0]["metadata"]) == found.hits[0].metadata


def test_qdrant(index: GraceIndex, tmp_path: Path) -> None:
    qdrant_client = pytest.importorskip("qdrant_client")
    assert export_qdrant(index, tmp_path / "out") == 129
    client = qdrant_client.QdrantClient(path=str(tmp_path / "out"))
    try:
        points = client.query_points("documents", query=QUERY.tolist(), limit=5).points
    finally:
        client.close()
    found = index.search_vectors(QUERY, k=5)[0]
    assert [point.payload["id"] for point in points] == found.ids
    np.testing.assert_allclose([point.score for point in points], found.scores, atol=1e-5)
    assert points[0].payload["metadata"] == found.hits[0].metadata


@pytest.mark.parametrize(
    ("module", "extra", "use"),
    [
        ("lancedb", "lancedb", lambda index, out: export_lancedb(index, out)),
        ("qdrant_client", "qdrant", lambda index, out: export_qdrant(index, out)),
        ("faiss", "cpu", lambda index, out: GraceIndex.open(index.folder)),
        (
            "bm25s",
            "hybrid",
            lambda index, out: hybrid.KeywordIndex([]),
        ),
        ("langchain_core", "langchain", lambda index, out: index.as_langchain()),
        ("llama_index.core", "llama-index", lambda index, out: index.as_llama_index()),
        (
            "ray",
            "ray",
            lambda index, out: list(RayRunner()([_TASK], Workspace(out, target="it"), GivenVectors())),
        ),
    ],
)
def test_a_missing_extra_is_named(
    module: str,
    extra: str,
    use: Callable[[GraceIndex, Path], object],
    index: GraceIndex,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    for own in [name for name in sys.modules if name.startswith(("langchain_grace", "llama_index.embeddings.grace"))]:
        monkeypatch.delitem(sys.modules, own)
    monkeypatch.setattr(sys, "meta_path", [_Absent(module), *sys.meta_path])
    with pytest.raises(MissingExtraError, match=rf"pip install 'grace-retrieval\[{extra}\]'"):
        use(index, tmp_path / "out")


class _Absent:
    """A finder that says a module is not installed, as Python does."""

    def __init__(self, module: str) -> None:
        self.module = module

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == self.module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
