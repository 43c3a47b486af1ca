"""Metrics against pytrec_eval, BM25 against its published figures, significance against all permutations."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest

pytrec_eval = pytest.importorskip("pytrec_eval", reason="the extra 'bench' is not installed")

from grace_benchmarks.retrieval.collection import Collection, load_beir  # noqa: E402
from grace_benchmarks.retrieval.metrics import Ranking, per_query, significance, summary  # noqa: E402
from grace_benchmarks.retrieval.rankers import BM25, fuse  # noqa: E402

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "retrieval"
# nDCG@10 and recall@100 of BM25 with English stop words and no stemming, from the README beside the collections.
PUBLISHED = {
    # The README says .239: it counts documents that share no word with the query, where fewer than 100 do.
    "nfcorpus": (0.306, 0.236),
    "arguana": (0.484, 0.959),
    "cranfield": (0.352, 0.709),
    "medline": (0.667, 0.775),
    "covidqa": (0.613, 0.913),
}


def by_pytrec(collection: Collection, ranking: Ranking) -> dict[str, dict[str, float]]:
    """The same measures from pytrec_eval itself; a query that found nothing counts as 0. MRR is cut off by hand."""
    run = {q: {d: s for d, s in docs.items() if d != collection.excluded.get(q)} for q, docs in ranking.items()}
    qrels = {query: dict(docs) for query, docs in collection.qrels.items()}
    found = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.100", "recip_rank"}).evaluate(run)
    empty = {"ndcg_cut_10": 0.0, "recall_100": 0.0, "recip_rank": 0.0}
    values = {query: found.get(query, empty) for query in collection.queries}
    return {
        "nDCG@10": {query: v["ndcg_cut_10"] for query, v in values.items()},
        "recall@100": {query: v["recall_100"] for query, v in values.items()},
        "MRR@10": {query: v["recip_rank"] if v["recip_rank"] >= 0.1 else 0.0 for query, v in values.items()},
    }


def check(collection: Collection, ranking: Ranking) -> dict[str, list[float]]:
    ours, theirs = per_query(collection, ranking), by_pytrec(collection, ranking)
    assert ours["query"] == list(collection.queries)
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], [values[q] for q in ours["query"]], atol=5.1e-5)
        assert summary(ours)[name] == pytest.approx(np.mean(list(values.values())), abs=1e-4)
    return ours


def test_metrics_equal_those_of_pytrec_eval() -> None:
    rng = np.random.default_rng(0)
    documents = {f"d{i}": f"text {i}" for i in range(150)}
    queries = {f"q{i}": f"query {i}" for i in range(12)}
    qrels = {
        q: {f"d{d}": int(rng.integers(0, 3)) for d in rng.choice(150, 8, replace=False)} | {"d0": 1} for q in queries
    }
    collection = Collection(
        name="made up", documents=documents, queries=queries, qrels=qrels, excluded={"q1": next(iter(qrels["q1"]))}
    )
    ranking = {q: {f"d{d}": float(rng.random()) for d in rng.permutation(150)[:120]} for q in list(queries)[:-1]}
    values = check(collection, ranking)
    assert values["nDCG@10"][-1] == 0, "a query without results counts"
    assert 0 < summary(values)["nDCG@10"] < 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_bm25_is_near_its_published_figures_and_metrics_equal_pytrec_evals(name: str) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"the collection {name} is not on this machine: {SHARED}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=f"{name}: .* relevant documents are not in the corpus")
        collection = load_beir(SHARED / name)
    values = summary(check(collection, BM25(collection).rank()))
    ndcg, recall = PUBLISHED[name]
    assert values["nDCG@10"] == pytest.approx(ndcg, abs=0.003)
    assert values["recall@100"] == pytest.approx(recall, abs=0.003)
    assert bool(collection.excluded) == (name == "arguana")
    assert collection.unknown == (5 if name == "arguana" else 0)


def test_the_significance_test_equals_all_permutations() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.random(9) + 0.15, rng.random(9)
    difference = ours - theirs
    signs = np.array(list(itertools.product((1, -1), repeat=9)))
    means = np.abs((signs * difference).mean(1))
    expected = float((means >= abs(difference.mean()) - 1e-12).mean())
    assert significance(list(ours), list(theirs)) == pytest.approx(expected, abs=2e-3)
    assert significance([0.5, 0.2], [0.5, 0.2]) == 1
    many = list(rng.random(200))
    assert significance([v + 0.1 for v in many], many) < 0.001
    noise = [v + n for v, n in zip(many, rng.standard_normal(200) * 0.1, strict=True)]
    assert significance(noise, many, seed=1) == significance(noise, many, seed=1)


def test_fusion_is_reciprocal_rank_fusion() -> None:
    fused = fuse({"q": {"a": 9.0, "b": 5.0, "c": 1.0}}, {"q": {"c": 0.9, "a": 0.1}})["q"]
    assert list(fused) == ["a", "c", "b"]
    assert fused["a"] == pytest.approx(1 / 61 + 1 / 62)
    assert fused["c"] == pytest.approx(1 / 63 + 1 / 61)
    assert fused["b"] == pytest.approx(1 / 62)
