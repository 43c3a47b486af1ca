"""nDCG@10, recall@100 and MRR@10 of a ranking, query by query, and whether two rankings differ by more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ir_measures
import numpy as np
from ir_measures import RR, Qrel, R, ScoredDoc, nDCG

from grace_benchmarks.record import Row, RowFile, read_rows
from grace_benchmarks.retrieval.collection import Collection
from grace_retrieval.corpus.runs import trec_order

__all__ = ["MEASURES", "Ranking", "against", "per_query", "significance", "summary"]

MEASURES = {"nDCG@10": nDCG @ 10, "recall@100": R @ 100, "MRR@10": RR @ 10}

Ranking = Mapping[str, Mapping[str, float]]
"""Scores of the best documents, by query and document."""


def per_query(collection: Collection, ranking: Ranking) -> dict[str, list[Any]]:
    """Every measure of every query, by ir-measures.

    Args:
        collection: The collection.
        ranking: What a system found. A query it found nothing for counts as 0.

    Returns:
        `query` (ids in the collection's order) and the values of each measure, four digits.
    """
    qrels = [Qrel(query, doc, score) for query, docs in collection.qrels.items() for doc, score in docs.items()]
    run = [
        ScoredDoc(query, doc, score)
        for query, docs in ranking.items()
        for doc, score in _without_ties(docs, collection.excluded.get(query))
    ]
    values: dict[str, dict[str, float]] = {name: {} for name in MEASURES}
    names = {measure: name for name, measure in MEASURES.items()}
    for metric in ir_measures.iter_calc(list(MEASURES.values()), qrels, run):
        values[names[metric.measure]][metric.query_id] = float(metric.value)
    queries = list(collection.queries)
    return {
        "query": queries,
        **{name: [round(found.get(query, 0.0), 4) for query in queries] for name, found in values.items()},
    }


def _without_ties(docs: Mapping[str, float], excluded: str | None) -> list[tuple[str, float]]:
    """Documents with scores that all differ, in trec_eval's order.

    The providers of ir-measures cut equal scores off in different places otherwise.
    """
    kept = trec_order({doc: score for doc, score in docs.items() if doc != excluded})
    return [(doc, float(len(kept) - rank)) for rank, (doc, _) in enumerate(kept)]


def summary(values: Mapping[str, Sequence[Any]]) -> dict[str, float]:
    """Means over the queries, and the standard error of nDCG@10.

    Args:
        values: From `per_query`.
    """
    result = {name: round(float(np.mean(values[name])), 4) for name in MEASURES}
    ndcg = np.asarray(values["nDCG@10"], dtype=np.float64)
    result["nDCG@10 standard error"] = round(float(ndcg.std() / len(ndcg) ** 0.5), 4)
    return result


def significance(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 0, resamples: int = 9999) -> float:
    """Paired permutation test of two systems over the same queries (Smucker, Allan and Carterette, CIKM 2007).

    Args:
        ours: One value a query.
        theirs: One value for each of the same queries.
        seed: Seed of the permutations.
        resamples: Number of permutations.

    Returns:
        Two-sided p-value of the difference of the means; 1 if all values are equal.

    Example:
        >>> significance([0.1, 0.2], [0.1, 0.2])
        1.0
    """
    from scipy.stats import permutation_test

    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    if not difference.any():
        return 1.0

    def mean(values: Any, axis: int = -1) -> Any:
        return np.mean(values, axis=axis)

    # With one sample, "samples" flips the sign of each difference.
    found = permutation_test(
        (difference,), mean, permutation_type="samples", n_resamples=resamples, rng=np.random.default_rng(seed)
    )
    return float(f"{found.pvalue:.3g}")


def against(out: RowFile, values: Mapping[str, Sequence[Any]], digest: str, *, run: int, seed: int = 0) -> list[Row]:
    """Differences in nDCG@10 to the systems measured before, and whether they are more than chance.

    Args:
        out: Rows of systems measured before.
        values: From `per_query`.
        digest: Of the collection.
        run: Number of the run.
        seed: Seed of the permutations.
    """
    found = []
    for row in read_rows(out.path) if out.path.exists() else ():
        same = row.get("kind") == "retrieval" and row["data"]["digest"] == digest
        if not same or row["run"] != run or row["per_query"]["query"] != values["query"]:
            continue
        theirs = row["per_query"]["nDCG@10"]
        found.append(
            {
                "key": row["key"],
                "model": row["model"],
                "column": row["column"],
                "max_new_tokens": row["max_new_tokens"],
                "difference": round(float(np.mean(values["nDCG@10"]) - np.mean(theirs)), 4),
                "p": significance(values["nDCG@10"], theirs, seed=seed),
            }
        )
    return found
