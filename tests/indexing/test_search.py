"""Searching an index of given vectors, against numbers made with numpy alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from grace_retrieval import GraceIndex, InputError, ModelMismatchError, SearchResult
from grace_retrieval.indexing import Document, FaissOptions, build_index
from grace_retrieval.indexing.hybrid import KeywordIndex
from grace_retrieval.indexing.rows import RowReader
from tests.indexing.conftest import make_documents, unit

QUERIES = np.random.default_rng(9).standard_normal((5, 16)).astype(np.float32)


def exact(documents: list[Document], k: int, allowed: Callable[[Document], bool] = lambda _: True) -> list[list[str]]:
    kept = [document for document in documents if allowed(document)]
    scores = unit(QUERIES) @ unit(np.stack([document.vector for document in kept])).T
    return [[kept[place].id for place in np.argsort(-row)[:k]] for row in scores]


def test_finds_what_numpy_finds_with_its_cosines(build: Callable[..., Path]) -> None:
    documents = make_documents(230)
    index = GraceIndex.open(build(documents))
    found = index.search_vectors(QUERIES, k=7)
    assert [result.ids for result in found] == exact(documents, 7)
    by_id = {document.id: document for document in documents}
    for query, result in zip(QUERIES, found, strict=True):
        cosines = [float(unit(query) @ unit(by_id[name].vector)) for name in result.ids]
        np.testing.assert_allclose(result.scores, cosines, atol=1e-6)
        assert result.scores.dtype == np.float32
        hit, source = result.hits[0], by_id[result.ids[0]]
        assert (hit.text, hit.title, hit.metadata) == (source.text, source.title, source.metadata)
        assert hit.embedded_text == source.embedded_text
        assert (hit.rationale.text, hit.rationale.token_ids) == ("", ())


@pytest.mark.parametrize(
    "factory",
    ["SQ8", "HNSW16,SQ8", "IVF16,SQ8", "IVF8,PQ8x4fs,Refine(SQ8)", "OPQ8,IVF8,PQ8x4fs,Refine(Flat)", "PQ8x4fs"],
)
@pytest.mark.filterwarnings("ignore:.*training points:UserWarning")
def test_quantised_indexes_give_exact_scores_and_obey_filters(factory: str, build: Callable[..., Path]) -> None:
    documents = make_documents(9000)
    folder = build(documents, faiss=FaissOptions(factory=factory), shard_rows=2000)
    index = GraceIndex.open(folder)
    assert (index.manifest.faiss.factory, index.manifest.faiss.metric) == (factory, "l2")
    truth, vectors = exact(documents, 10), {document.id: document.vector for document in documents}
    found = index.search_vectors(QUERIES, k=10)
    recall = np.mean([len(set(a) & set(b.ids)) / 10 for a, b in zip(truth, found, strict=True)])
    assert recall >= 0.7
    for query, result in zip(QUERIES, found, strict=True):
        cosines = [float(unit(query) @ unit(vectors[name])) for name in result.ids]
        np.testing.assert_allclose(result.scores, cosines, atol=1e-6)
        assert list(result.scores) == sorted(result.scores, reverse=True)
    # More rows than are compared one by one, so that FAISS does the filtering.
    result = index.search_vectors(QUERIES, k=10, filter=lambda metadata: metadata["number"] >= 4000)[0]
    assert len(result.hits) == 10
    assert all(hit.metadata["number"] >= 4000 for hit in result.hits)


def test_equal_scores_are_in_the_order_of_the_rows(build: Callable[..., Path]) -> None:
    same, other = np.eye(16, dtype=np.float32)[:2]
    documents = [Document(id=f"d{n}", text=f"{n}", vector=same if n % 3 else same + other) for n in range(300)]
    index = GraceIndex.open(build(documents))
    expected = [f"d{n}" for n in range(300) if n % 3] + [f"d{n}" for n in range(300) if not n % 3]
    for queries in (same, np.stack([same] * 30)):
        for k in (1, 7, 150, 300):
            assert index.search_vectors(queries, k=k)[-1].ids == expected[:k]


def test_filters(build: Callable[..., Path]) -> None:
    documents = make_documents(300)
    index = GraceIndex.open(build(documents))
    by_value = index.search_vectors(QUERIES, k=5, filter={"kind": "moon"})
    assert [result.ids for result in by_value] == exact(documents, 5, lambda d: d.metadata["kind"] == "moon")
    several = index.search_vectors(QUERIES, k=5, filter={"kind": ["moon", "bread"], "number": [2, 5, 8]})
    assert {name for result in several for name in result.ids} == {"d2", "d5"}
    assert index.search_vectors(QUERIES, filter={"kind": "nothing"})[0].hits == ()
    assert index.search_vectors(QUERIES, filter=lambda metadata: "nothing" in metadata)[0].hits == ()
    with pytest.raises(
        InputError,
        match=r"no document has metadata 'knd', 'nothing'\. Did you mean kind\? Give one of",
    ):
        index.search_vectors(QUERIES, filter={"nothing": 1, "number": 2, "knd": "moon"})
    with pytest.raises(InputError, match="give a mapping"):
        index.search_vectors(QUERIES, filter="kind=moon")  # type: ignore[arg-type]


def test_numbers_of_hits(build: Callable[..., Path]) -> None:
    index = GraceIndex.open(build(make_documents(12)))
    assert len(index.search_vectors(QUERIES[0], k=50)[0].hits) == len(index) == 12
    for wrong in (0, -1, 2.5, True, "3"):
        with pytest.raises(InputError, match="positive whole number"):
            index.search_vectors(QUERIES, k=wrong)  # type: ignore[arg-type]
    assert index.search_vectors(np.zeros((0, 16))) == []


def test_vectors_that_cannot_be_searched(build: Callable[..., Path]) -> None:
    index = GraceIndex.open(build(make_documents(12)))
    with pytest.raises(ModelMismatchError, match=r"shape \(1, 8\).*16 dimensions"):
        index.search_vectors(np.ones(8))
    with pytest.raises(InputError, match="NaN"):
        index.search_vectors(np.full(16, np.nan))
    with pytest.raises(InputError, match="its model is not known"):
        index.search("a query")
    assert index.search_vectors(np.zeros(16))[0] == SearchResult(query="", hits=())


@pytest.mark.parametrize("factory", [None, "SQ8"])
def test_blank_documents_are_kept_and_never_found(factory: str | None, build: Callable[..., Path]) -> None:
    documents = make_documents(60)
    documents[5] = Document(id="blank", text=" ", vector=np.zeros(16, np.float32))
    index = GraceIndex.open(build(documents, faiss=FaissOptions(factory=factory)))
    # On vectors of length 1, L2 takes zeros for a cosine of one half, better than most.
    found = index.search_vectors(-QUERIES, k=60)
    assert len(index) == 60
    assert all(len(result.hits) == 59 and "blank" not in result.ids for result in found)


def test_hybrid_search_fuses_two_rankings(make_embedder: Callable[..., object], tmp_path: Path) -> None:
    import bm25s

    embedder = make_embedder()
    documents = [Document(id=d.id, text=d.text, title=d.title) for d in make_documents(40)]
    build_index(documents, tmp_path / "index", embedder=embedder)  # type: ignore[arg-type]
    index = GraceIndex.open(tmp_path / "index", embedder=embedder)  # type: ignore[arg-type]
    query = "copper wire for the bees"
    words = bm25s.BM25()
    words.index(
        bm25s.tokenize([d.embedded_text for d in documents], stopwords="en", show_progress=False), show_progress=False
    )
    scores = words.get_scores(bm25s.tokenize([query], stopwords="en", return_ids=False, show_progress=False)[0])
    by_words = [documents[place].id for place in np.argsort(-scores, kind="stable") if scores[place] > 0]
    by_vectors = index.search(query, k=40).ids
    fused: dict[str, float] = {}
    for ranking in (by_words, by_vectors):
        for rank, name in enumerate(ranking, start=1):
            fused[name] = fused.get(name, 0.0) + 1 / (60 + rank)
    best = sorted(fused.values(), reverse=True)[:5]
    found = index.search(query, k=5, hybrid=True)
    np.testing.assert_allclose(found.scores, best, rtol=1e-6)
    assert [fused[name] for name in found.ids] == pytest.approx(best)
    assert found.ids != by_vectors[:5]
    assert index.search("zzz", k=3, hybrid=True).ids == index.search("zzz", k=3).ids
    assert index.search(" ", hybrid=True).hits == ()


@pytest.mark.parametrize(
    ("texts", "found"), [(["", "glass", "the"], [[], [], [], [1]]), (["", "the"], [[]] * 4), ([], [[]] * 4)]
)
def test_words_that_are_nowhere_find_nothing(texts: list[str], found: list[list[int]]) -> None:
    ranked = KeywordIndex(texts).rank(["", "the", "zeppelin", "glass"], 5, None)
    assert [rows.tolist() for rows in ranked] == found


def test_threads_share_an_index(build: Callable[..., Path]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    documents = make_documents(500)
    index = GraceIndex.open(build(documents, faiss=FaissOptions(factory="SQ8")))
    index.rows.max_bytes = 10_000  # row groups come and go
    alone = index.search_vectors(QUERIES, k=20)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda _: index.search_vectors(QUERIES, k=20), range(20)))
    assert all(found == alone for found in together)


def test_metadata_is_json_that_others_can_read(build: Callable[..., Path]) -> None:
    import duckdb

    folder = build(make_documents(120))
    found = duckdb.sql(
        f"SELECT id, CAST(metadata ->> 'number' AS INT) AS number, len(vector) AS dim FROM '{folder}/shards/*.parquet' "
        "WHERE metadata ->> 'kind' = 'moon' ORDER BY number DESC LIMIT 2"
    ).fetchall()
    assert found == [("d117", 117, 16), ("d113", 113, 16)]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["rows"] == 120
    assert manifest["format_version"] == 1


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Open files are counted in /proc.")
def test_few_shards_are_open_at_once(build: Callable[..., Path]) -> None:
    documents = make_documents(200)
    index = GraceIndex.open(build(documents, shard_rows=1))
    assert len(index.manifest.shards) == 200
    found = index.search_vectors(QUERIES, k=200)
    assert [result.ids for result in found] == exact(documents, 200)
    links = (path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
    assert sum(link.is_relative_to(index.folder) for link in links) <= 130


def test_rows_are_the_same_whatever_is_kept_in_memory(build: Callable[..., Path]) -> None:
    folder = build(make_documents(120), shard_rows=30)
    shards = GraceIndex.open(folder).manifest.shards
    rows = [119, 3, 60, 3, 0, 61, 31]
    for budget in (0, 1 << 20):
        hits = RowReader(folder / "shards", shards, max_bytes=budget).hits(rows, list(range(7)))
        assert [hit.id for hit in hits] == [f"d{row}" for row in rows]
        assert [hit.score for hit in hits] == list(range(7))
        assert [hit.metadata["number"] for hit in hits] == rows
