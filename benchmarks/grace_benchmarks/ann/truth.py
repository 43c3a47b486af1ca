"""Exact neighbours, searched once and kept on disk; and the recall of what an index found."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_benchmarks.ann.vectors import Vectors
from grace_retrieval.advice import advise
from grace_retrieval.errors import InputError

__all__ = ["GroundTruth", "exact_neighbours"]

TOLERANCE = 4e-6
"""Distances of unit vectors that differ by less are a tie: the rounding of float32 at squared distances up to 4."""

_CHECKED = 8


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """The exact neighbours of every query.

    Attributes:
        ids: Places of the neighbours, nearest first. Shape: (queries, k), int64.
        distances: Squared distances, or inner products below zero, computed from the vectors in float64. Shape:
            (queries, k).
    """

    ids: npt.NDArray[np.int64]
    distances: npt.NDArray[np.float64]

    def recall(self, found: npt.NDArray[np.int64], vectors: Vectors) -> float:
        """Share of the k nearest that were found: recall@k.

        A found vector counts if it is no farther than the k-th neighbour, so that of equally near vectors any will do
        (as in ann-benchmarks). Distances are recomputed: the index's own may be approximate.

        Args:
            found: Places that an index returned, -1 for none. Shape: (queries, k).
            vectors: What was searched.

        Returns:
            Between 0 and 1.
        """
        hits = 0
        queries = vectors.query_vectors()
        tolerance = TOLERANCE * _scale(queries, vectors)
        for row, (ids, true) in enumerate(zip(found, self.ids, strict=True)):
            unique = np.unique(ids[ids >= 0])
            exact = np.isin(unique, true)
            hits += int(exact.sum())
            others = unique[~exact]
            if len(others):
                far = _distances(queries[row], vectors.gather(others), vectors)
                hits += int((far <= self.distances[row, -1] + tolerance).sum())
        return float(hits / self.ids.size)


def exact_neighbours(vectors: Vectors, k: int, *, work: Path) -> GroundTruth:
    """Search exactly, or read what an earlier search found and check it.

    Args:
        vectors: What to search.
        k: Neighbours of each query.
        work: Folder that holds ground truth, by the hash of the vectors.

    Returns:
        The neighbours.

    Raises:
        InputError: If k is above the number of vectors, or the kept neighbours are not those of these vectors.
    """
    if not 1 <= k <= vectors.n:
        raise InputError(f"k={k}: give a number from 1 to {vectors.n}, the number of vectors searched.")
    kind = "" if vectors.metric == "cosine" else f"{vectors.metric}-"
    file = work / "truth" / f"{vectors.digest}-{kind}{k}.npz"
    if not file.exists():
        given = vectors.given_neighbours()
        truth = _search(vectors, k) if given is None or given.shape[1] < k else _given(given, vectors, k)
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f".{os.getpid()}-{file.name}")
        np.savez(unfinished, ids=truth.ids, distances=truth.distances)
        os.replace(unfinished, file)
        return truth
    try:
        with np.load(file, allow_pickle=False) as stored:
            truth = GroundTruth(ids=stored["ids"], distances=stored["distances"])
        _check(truth, vectors, k)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"The ground truth {file} is damaged ({error}): remove it, and it is made again.") from error
    return truth


def _search(vectors: Vectors, k: int, chosen: npt.NDArray[np.int64] | None = None) -> GroundTruth:
    """Search exactly, for all queries or those at some places."""
    import faiss
    from faiss.contrib.exhaustive_search import knn_ground_truth

    queries = vectors.query_vectors() if chosen is None else vectors.query_vectors()[chosen]
    # A few more than k, because float32 may swap the last ones.
    wanted = min(vectors.n, k + 8)
    search: Any = knn_ground_truth
    metric = faiss.METRIC_INNER_PRODUCT if vectors.metric == "ip" else faiss.METRIC_L2
    _, ids = search(queries, vectors.blocks(), wanted, metric_type=metric)
    return _ordered(ids, queries, vectors, k)


def _given(ids: npt.NDArray[np.int64], vectors: Vectors, k: int) -> GroundTruth:
    """Neighbours that came with the vectors, after a few queries were searched: another metric has others."""
    truth = _ordered(ids, vectors.query_vectors(), vectors, k)
    some = np.unique(np.linspace(0, vectors.queries - 1, min(_CHECKED, vectors.queries), dtype=np.int64))
    exact = _search(vectors, k, some)
    far = truth.distances[some] > exact.distances + TOLERANCE * _scale(vectors.query_vectors(), vectors)
    if far.any():
        query, place = (int(where[0]) for where in np.nonzero(far))
        raise InputError(
            f"The given neighbours are not those of these vectors under the metric {vectors.metric!r}: the "
            f"{place + 1}. of query {int(some[query])} is not the {place + 1}. nearest. "
            + advise(("name another metric ({})", "--metric", "metric"), "give the neighbours of these vectors")
        )
    return truth


def _ordered(ids: npt.NDArray[np.int64], queries: Any, vectors: Vectors, k: int) -> GroundTruth:
    """The k nearest of some, by distances from the vectors themselves."""
    near = (vectors.gather(row) for row in ids)
    distances = np.stack([_distances(query, rows, vectors) for query, rows in zip(queries, near, strict=True)])
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return GroundTruth(ids=np.take_along_axis(ids, order, 1), distances=np.take_along_axis(distances, order, 1))


def _check(truth: GroundTruth, vectors: Vectors, k: int) -> None:
    """Compare the shape, and the distances of a few queries with those of the vectors."""
    if truth.ids.shape != (vectors.queries, k) or truth.distances.shape != truth.ids.shape:
        raise ValueError(f"shape {truth.ids.shape} for {vectors.queries} queries and k={k}")
    queries = vectors.query_vectors()
    for row in np.linspace(0, vectors.queries - 1, min(_CHECKED, vectors.queries), dtype=np.int64):
        found = _distances(queries[row], vectors.gather(truth.ids[row]), vectors)
        if not np.allclose(found, truth.distances[row], atol=1e-9):
            raise ValueError(f"the distances of query {row} are not those of the vectors")


def _distances(query: npt.NDArray[np.float32], rows: npt.NDArray[np.float32], vectors: Vectors) -> Any:
    """Squared distances, or inner products below zero: smaller is nearer. Shape: (rows,), float64."""
    if vectors.metric == "ip":
        return -(rows.astype(np.float64) @ query.astype(np.float64))
    difference = rows.astype(np.float64) - query.astype(np.float64)
    return np.asarray((difference**2).sum(1))


def _scale(queries: npt.NDArray[np.float32], vectors: Vectors) -> float:
    """How much larger numbers are than those of unit vectors, and so their rounding."""
    if vectors.metric == "cosine":
        return 1.0
    rows = vectors.gather(np.linspace(0, vectors.n - 1, min(vectors.n, 256), dtype=np.int64))
    return float(max((matrix.astype(np.float64) ** 2).sum(1).max() for matrix in (queries, rows)))
