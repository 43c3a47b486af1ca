"""Searchable: what stores of other frameworks ask of an index, so that they need not know the index itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from grace_retrieval.indexing.filters import Filter
from grace_retrieval.indexing.hits import SearchResult
from grace_retrieval.indexing.rows import RowReader

__all__ = ["Searchable"]

Float32 = npt.NDArray[np.float32]


class Searchable(Protocol):
    """An opened index; `GraceIndex` describes the methods.

    Attributes:
        rows: Reads documents and vectors by the numbers of their rows.
    """

    rows: RowReader

    def search(self, queries: str, k: int = 10, *, filter: Filter | None = None, hybrid: bool = False) -> SearchResult:
        """Documents closest to a query."""
        ...

    def search_vectors(
        self, vectors: Sequence[Sequence[float]], k: int = 10, *, filter: Filter | None = None
    ) -> list[SearchResult]:
        """Documents closest to vectors, one result a vector."""
        ...

    def embed_queries(self, queries: Sequence[str]) -> Float32:
        """Vectors of queries. Shape: (queries, dim)."""
        ...

    def rank(
        self, vectors: Float32, k: int, *, filter: Filter | None = None
    ) -> list[tuple[npt.NDArray[np.int64], Float32]]:
        """Numbers and scores of the best rows for each vector."""
        ...
