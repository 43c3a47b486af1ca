"""Hybrid search: the rankings of vectors and of BM25, fused by reciprocal rank.

score(d) = Σ over rankings of 1 / (60 + rank of d)       (Cormack, Clarke and Büttcher, SIGIR 2009)
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_retrieval.errors import MissingExtraError

__all__ = ["RRF_CONSTANT", "KeywordIndex", "fuse"]

RRF_CONSTANT = 60


class KeywordIndex:
    """BM25 over the documents of an index (bm25s: English stop words, no stemming). Kept in memory.

    Args:
        texts: What the embedder was shown of every row, in their order.

    Raises:
        MissingExtraError: If bm25s is not installed.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._bm25s = _import_bm25s()
        self._index: Any = self._bm25s.BM25()
        tokens = self._bm25s.tokenize(list(texts), stopwords="en", show_progress=False)
        # bm25s cannot index a corpus without a single word.
        self._empty = not tokens.vocab
        if not self._empty:
            self._index.index(tokens, show_progress=False)

    def rank(
        self, queries: Sequence[str], k: int, allowed: npt.NDArray[np.bool_] | None
    ) -> list[npt.NDArray[np.int64]]:
        """The rows that match best, for each query; see `search`."""
        return [rows for rows, _ in self.search(queries, k, allowed)]

    def search(
        self, queries: Sequence[str], k: int, allowed: npt.NDArray[np.bool_] | None = None
    ) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
        """The rows that match best, for each query; rows that share no word with it are left out.

        Args:
            queries: Queries.
            k: Most rows for a query.
            allowed: Which rows may be found; None allows all. Shape: (rows,), bool.

        Returns:
            Rows and scores, best first; of equal ones the lower row first. Shape: (at most k,), int64 and float32.
        """
        found = []
        for query in queries:
            words = self._bm25s.tokenize([query], stopwords="en", return_ids=False, show_progress=False)[0]
            if self._empty or not words:
                found.append((np.zeros(0, np.int64), np.zeros(0, np.float32)))
                continue
            scores = np.asarray(self._index.get_scores(words), dtype=np.float32)
            if allowed is not None:
                scores = np.where(allowed, scores, np.float32(0))
            best = np.argsort(-scores, kind="stable")[:k]
            best = best[scores[best] > 0].astype(np.int64)
            found.append((best, scores[best]))
        return found


def fuse(rankings: Sequence[Sequence[int]], k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Fuse rankings by reciprocal rank.

    Args:
        rankings: Rows, best first.
        k: Most rows to keep.

    Returns:
        Rows and scores, best first; of equal ones the lower row first. Shape: (at most k,), int64 and float32.

    Example:
        >>> fuse([[7, 3], [3, 9]], 2)[0].tolist()
        [3, 7]
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, row in enumerate(ranking, start=1):
            scores[row] = scores.get(row, 0.0) + 1.0 / (RRF_CONSTANT + rank)
    best = sorted(scores, key=lambda row: (-scores[row], row))[:k]
    return np.array(best, dtype=np.int64), np.array([scores[row] for row in best], dtype=np.float32)


def _import_bm25s() -> Any:
    try:
        return importlib.import_module("bm25s")
    except ModuleNotFoundError as error:
        if error.name != "bm25s":
            raise
        raise MissingExtraError("bm25s", "hybrid", "Hybrid search") from error
