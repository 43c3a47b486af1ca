"""An index as LangChain's VectorStore. Nothing is pickled: the documents are read from the index."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from grace_retrieval.errors import InputError
from grace_retrieval.indexing.hits import Hit
from grace_retrieval.near import did_you_mean

if TYPE_CHECKING:
    from grace_retrieval.indexing.searchable import Searchable

__all__ = ["GraceVectorStore"]

_READ_ONLY = "An opened index is read-only: change it with `grace index add`, `grace index delete` or build_index()."


class GraceVectorStore(VectorStore):
    """Searches an index. Queries are embedded by the index's own embedder, with its prompt for queries.

    Metadata of a document: what the index carries, and `title`, `rationale` and `score` beside it. Where the corpus has
    a column of such a name, ours is `grace_title`, `grace_rationale` or `grace_score`.

    Args:
        index: An opened index.
    """

    def __init__(self, index: Searchable) -> None:
        self.index = index

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Any = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Documents closest to a query, with their cosines.

        Args:
            query: Query.
            k: Most documents.
            filter: As in `GraceIndex.search`.
            **kwargs: hybrid: whether to fuse with BM25.
        """
        _refuse({name: value for name, value in kwargs.items() if name != "hybrid"})
        return [(_document(hit), hit.score) for hit in self.index.search(query, k, filter=filter, **kwargs).hits]

    def similarity_search(self, query: str, k: int = 4, filter: Any = None, **kwargs: Any) -> list[Document]:
        """Documents closest to a query; see `similarity_search_with_score`."""
        return [document for document, _ in self.similarity_search_with_score(query, k, filter=filter, **kwargs)]

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: Any = None, **kwargs: Any
    ) -> list[Document]:
        """Documents closest to a vector; arguments that mean nothing here are refused."""
        _refuse(kwargs)
        (found,) = self.index.search_vectors([embedding], k, filter=filter)
        return [_document(hit) for hit in found.hits]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Any = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Documents that are close to a query and unlike each other.

        Args:
            query: Query.
            k: Most documents.
            fetch_k: Documents to choose from.
            lambda_mult: 1 chooses by closeness alone, 0 by difference alone.
            filter: As in `GraceIndex.search`.
            **kwargs: None.
        """
        _refuse(kwargs)
        (vector,) = self.index.embed_queries([query])
        ((rows, scores),) = self.index.rank(vector[None], fetch_k, filter=filter)
        if not len(rows):
            return []
        vectors = self.index.rows.vectors(rows)
        chosen = maximal_marginal_relevance(np.asarray(vector), list(vectors), lambda_mult=lambda_mult, k=k)
        hits = self.index.rows.hits(rows.tolist(), scores.tolist())
        return [_document(hits[place]) for place in chosen]

    def _select_relevance_score_fn(self) -> Any:
        """Cosines from -1 to 1 as relevance from 0 to 1."""
        return lambda score: (1.0 + score) / 2.0

    def add_texts(self, texts: Iterable[str], metadatas: list[dict[str, Any]] | None = None, **kwargs: Any) -> Any:
        """Refused: an opened index is read-only.

        Raises:
            InputError: Always.
        """
        raise InputError(_READ_ONLY)

    @classmethod
    def from_texts(
        cls, texts: list[str], embedding: Embeddings, metadatas: list[dict[str, Any]] | None = None, **kwargs: Any
    ) -> Any:
        """Refused: an index is built by `build_index()`.

        Raises:
            InputError: Always.
        """
        raise InputError("Build an index with `grace index build` or build_index(), and open it with GraceIndex.open.")


def _refuse(kwargs: dict[str, Any]) -> None:
    if kwargs:
        name, value = next(iter(kwargs.items()))
        known = ("k", "filter", "hybrid", "fetch_k", "lambda_mult", "score_threshold")
        raise InputError(f"An index is not searched with {name}={value!r}.{did_you_mean(name, known)}")


def _document(hit: Hit) -> Document:
    ours = hit.beside_metadata(("title", "rationale", "score"))
    return Document(id=hit.id, page_content=hit.text, metadata={**ours, **hit.metadata})
