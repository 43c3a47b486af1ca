"""Rankings: rows and their scores, best first; and rows that are compared one by one, which is exact."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["FEW", "Ranking", "best_of", "compare_rows"]

Rows = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float32]
Ranking = tuple[Rows, Vectors]
"""Row numbers and their scores, best first."""

FEW = 4096
"""So few allowed rows are compared one by one, which is exact and faster than a filtered index."""


def best_of(rows: Rows, scores: Vectors, k: int) -> Ranking:
    """The k best rows; of equal ones the first.

    Args:
        rows: Row numbers. Shape: (rows,), int64.
        scores: Their scores. Shape: (rows,), float32.
        k: Most rows to keep.
    """
    order = np.lexsort((rows, -scores))[:k]
    return rows[order], scores[order]


def compare_rows(queries: Vectors, k: int, rows: Rows, vectors: Callable[[Rows], Vectors]) -> list[Ranking]:
    """Compare rows one by one, some at a time.

    Args:
        queries: Shape: (queries, dim), float32.
        k: Most rows for a query.
        rows: Rows to compare. Shape: (rows,), int64.
        vectors: Gives the vectors of rows.

    Returns:
        A ranking for each query.
    """
    best: list[Ranking] = [(np.zeros(0, np.int64), np.zeros(0, np.float32))] * len(queries)
    for start in range(0, len(rows), FEW):
        some = rows[start : start + FEW]
        scores = queries @ vectors(some).T
        best = [
            best_of(np.concatenate([before, some]), np.concatenate([known, new]), k)
            for (before, known), new in zip(best, scores, strict=True)
        ]
    return best
