"""GraceIndex: an index on disk, opened for searching."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from grace_retrieval.errors import InputError, ModelMismatchError
from grace_retrieval.indexing.editing import EditableIndex
from grace_retrieval.indexing.faiss_store import can_select, open_faiss, search_faiss, vectors_of
from grace_retrieval.indexing.filters import Filter
from grace_retrieval.indexing.hits import SearchResult
from grace_retrieval.indexing.hybrid import KeywordIndex, fuse
from grace_retrieval.indexing.loading import load_for_index
from grace_retrieval.indexing.manifest import IndexManifest
from grace_retrieval.indexing.metadata import MetadataColumns
from grace_retrieval.indexing.ranking import FEW, Ranking, best_of, compare_rows
from grace_retrieval.indexing.rows import RowReader

if TYPE_CHECKING:
    from grace_retrieval.embedder import GraceEmbedder
    from langchain_grace.vector_store import GraceVectorStore as LangChainStore
    from llama_index.embeddings.grace.vector_store import GraceVectorStore as LlamaIndexStore

__all__ = ["GraceIndex"]

Vectors = npt.NDArray[np.float32]

_RESCORED = 4
"""Candidates of a quantised index for each wanted hit, which are scored again by the stored vectors."""


class GraceIndex(EditableIndex):
    """An index that `grace index build` made, opened for searching. Threads may share it.

    Scores are cosines of the query's vector and the stored ones. Documents whose text is blank have no vector and are
    never found; a blank query finds nothing.

    Args:
        folder: Folder of the index.
        embedder: Embeds the queries: an embedder, or the name or folder of a model, which is loaded with the options
            the index was built with. None loads the model it was built with when it is first needed.
        engine: What runs the model for queries, if it is to be another engine than the one that made the vectors: for a
            single query "llama-cpp" is faster. The model has to be the same; what is lost is said as a warning.
        memory_map: Whether FAISS's file is read as it is needed, rather than into memory at once.

    Raises:
        InputError: If there is no index, or a newer version of grace-retrieval wrote it.
        IndexCorruptedError: If a file is damaged.
        ModelMismatchError: If the embedder's vectors cannot be compared with those of the index.
        MissingExtraError: If FAISS is not installed.

    Example:
        >>> index = GraceIndex.open("demo-index")  # doctest: +SKIP
        >>> index.search("why are there two high tides a day?", k=3).ids  # doctest: +SKIP
        ['tides', 'gravity', 'eclipse']
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        embedder: GraceEmbedder | str | os.PathLike[str] | None = None,
        engine: str | None = None,
        memory_map: bool = True,
    ) -> None:
        if not isinstance(folder, (str, os.PathLike)):
            raise InputError(f"folder is {type(folder).__name__}: give the folder of an index.")
        self.folder = Path(folder)
        self._engine = engine
        self._memory_map = memory_map
        self._lock = Lock()
        self._embedder: GraceEmbedder | None = None
        self.refresh()
        if embedder is not None:
            self.use(embedder)

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        embedder: GraceEmbedder | str | os.PathLike[str] | None = None,
        engine: str | None = None,
        memory_map: bool = True,
    ) -> Self:
        """Open an index; see the class."""
        return cls(folder, embedder=embedder, engine=engine, memory_map=memory_map)

    def refresh(self) -> None:
        """Open what is in the folder now, after it was changed elsewhere; `add` and `delete` do it themselves.

        Raises:
            IndexCorruptedError: If a file is damaged.
        """
        manifest = IndexManifest.read(self.folder)
        faiss = open_faiss(self.folder, manifest.faiss, rows=manifest.rows, memory_map=self._memory_map)
        self.manifest, self._faiss = manifest, faiss
        self.rows = RowReader(self.folder / "shards", manifest.shards)
        self._metadata = MetadataColumns(self.rows)
        self._blank = self._blank_rows()
        self._words: KeywordIndex | None = None

    def __repr__(self) -> str:
        """What it holds, and what made it."""
        manifest = self.manifest
        model = manifest.identity.model if manifest.identity else "an unknown model"
        how = "with rationales" if manifest.rationale else "texts alone"
        return (
            f"GraceIndex({str(self.folder)!r}: {len(self):,} documents, {self.dimension} dimensions by {model}, {how}, "
            f"FAISS {manifest.faiss.factory})"
        )

    def __len__(self) -> int:
        """Number of documents."""
        return self.manifest.rows

    def __enter__(self) -> Self:
        """The index itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files."""
        self.close()

    def close(self) -> None:
        """Close the files; the index can still be searched, which opens them again."""
        self.rows.close()
        self._metadata.forget()

    @property
    def dimension(self) -> int:
        """Dimensions of a vector."""
        return self.manifest.dimension

    @property
    def embedder(self) -> GraceEmbedder:
        """Embeds queries; loaded when it is first asked for.

        Raises:
            InputError: If the index was built from given vectors, so that its model is not known.
            ModelLoadError: If the model is not where it was when the index was built.
            ModelMismatchError: If what is there now makes other vectors.
        """
        with self._lock:
            if self._embedder is None:
                embedder = load_for_index(self.folder, self.manifest, engine=self._engine)
                self._check(embedder)
                self._embedder = embedder
            return self._embedder

    def use(self, embedder: GraceEmbedder | str | os.PathLike[str]) -> None:
        """Embed queries with an embedder from now on.

        Args:
            embedder: An embedder that makes vectors like those of the index, or the name or folder of its model.

        Raises:
            InputError: If it is none of these.
            ModelLoadError: If there is no such model.
            ModelMismatchError: If its vectors cannot be compared with them.
        """
        if isinstance(embedder, (str, os.PathLike)):
            embedder = load_for_index(self.folder, self.manifest, model=embedder, engine=self._engine)
        elif not hasattr(embedder, "vector_identity"):
            raise InputError(
                f"embedder is {type(embedder).__name__}: give a GraceEmbedder, or the name or folder of a model."
            )
        self._check(embedder)
        self._embedder = embedder

    # ------------------------------------------------------------------ search

    # A str is a Sequence[str] too; the first signature takes it.
    @overload
    def search(  # type: ignore[overload-overlap]
        self, queries: str, k: int = 10, *, filter: Filter | None = None, hybrid: bool = False
    ) -> SearchResult: ...

    @overload
    def search(
        self, queries: Sequence[str], k: int = 10, *, filter: Filter | None = None, hybrid: bool = False
    ) -> list[SearchResult]: ...

    def search(
        self, queries: str | Sequence[str], k: int = 10, *, filter: Filter | None = None, hybrid: bool = False
    ) -> SearchResult | list[SearchResult]:
        """Find the documents that are closest to queries.

        Args:
            queries: A query, or several.
            k: Most documents for a query.
            filter: Which documents may be found: metadata that must be equal (or one of a list), such as
                {"lang": "en", "year": [2024, 2025]}, or a function of a document's metadata.
            hybrid: Whether to fuse the ranking with BM25's by reciprocal rank. The first such search reads all texts
                and keeps their words in memory.

        Returns:
            One SearchResult for a str, a list of them for a sequence.

        Raises:
            InputError: If k is not positive, a query is no str, or a filter names metadata that no document has.
        """
        from grace_retrieval.inputs import read_texts  # which loads torch

        texts = [queries] if isinstance(queries, str) else read_texts(queries)
        _check_k(k)
        vectors = self.embed_queries(texts)
        if hybrid:
            rankings = self._rank_hybrid(texts, vectors, k, filter)
        else:
            rankings = self.rank(vectors, k, filter=filter)
        found = self._results(texts, rankings)
        return found[0] if isinstance(queries, str) else found

    def embed_queries(self, queries: Sequence[str]) -> Vectors:
        """Vectors of queries, made as those of the documents are. Shape: (queries, dim), float32.

        Args:
            queries: Queries.
        """
        encode = self.embedder.encode_query
        return np.asarray(
            encode(list(queries), show_progress_bar=False, rationale=self.manifest.rationale), dtype=np.float32
        )

    def search_vectors(self, vectors: Any, k: int = 10, *, filter: Filter | None = None) -> list[SearchResult]:
        """Find the documents that are closest to vectors.

        Args:
            vectors: Vectors of queries, of any length above 0; zeros find nothing. Shape: (queries, dim) or (dim,).
            k: Most documents for a vector.
            filter: As in `search`.

        Returns:
            One SearchResult a vector.

        Raises:
            InputError: If k is not positive, a number is not finite, or a filter names metadata that no document has.
            ModelMismatchError: If the vectors have another dimension than the index.
        """
        _check_k(k)
        try:
            matrix = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"These are no vectors ({error}): give numbers of shape (queries, {self.dimension}). Texts are "
                "searched for with search()."
            ) from error
        if matrix.ndim != 2 or matrix.shape[1] != self.dimension:
            raise ModelMismatchError(
                f"The vectors have shape {matrix.shape}, and {self.folder} holds vectors of {self.dimension} "
                f"dimensions: give an array of shape (queries, {self.dimension})."
            )
        if not np.isfinite(matrix).all():
            raise InputError("The vectors hold NaN or infinity: give finite numbers.")
        lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
        matrix = np.divide(matrix, lengths, out=np.zeros_like(matrix), where=lengths > 0)
        return self._results([""] * len(matrix), self.rank(matrix, k, filter=filter))

    def _results(self, texts: Sequence[str], rankings: Sequence[Ranking]) -> list[SearchResult]:
        flat = self.rows.hits(
            [row for rows, _ in rankings for row in rows.tolist()],
            [score for _, scores in rankings for score in scores.tolist()],
        )
        results, start = [], 0
        for text, (rows, _) in zip(texts, rankings, strict=True):
            results.append(SearchResult(query=text, hits=tuple(flat[start : start + len(rows)])))
            start += len(rows)
        return results

    def rank(self, vectors: Vectors, k: int, *, filter: Filter | None = None) -> list[Ranking]:
        """The best rows for vectors, without reading the documents.

        Args:
            vectors: Vectors of length 1; zeros find nothing. Shape: (queries, dim), float32.
            k: Most rows for a vector.
            filter: As in `search`.

        Returns:
            For each vector row numbers and cosines, best first. Shape: (at most k,), int64 and float32.
        """
        return self._rank(vectors, k, self._allowed(filter))

    def _rank_hybrid(self, texts: Sequence[str], vectors: Vectors, k: int, filter: Filter | None) -> list[Ranking]:
        """Fuse the rankings of vectors and of words, each deep enough to meet the other."""
        allowed = self._allowed(filter)
        depth = max(10 * k, 100)
        with self._lock:
            if self._words is None:
                self._words = KeywordIndex(self.rows.embedded_texts())
        by_words = self._words.rank(texts, depth, allowed)
        by_vectors = self._rank(vectors, depth, allowed)
        return [fuse([rows.tolist(), words.tolist()], k) for (rows, _), words in zip(by_vectors, by_words, strict=True)]

    def _rank(self, vectors: Vectors, k: int, allowed: npt.NDArray[np.bool_] | None) -> list[Ranking]:
        """The best of the allowed rows for every vector, scored by the stored vectors."""
        nothing = (np.zeros(0, np.int64), np.zeros(0, np.float32))
        rankings: list[Ranking] = [nothing] * len(vectors)
        count = len(self) if allowed is None else int(allowed.sum())
        asked = np.flatnonzero(vectors.any(axis=1))
        if not count or not len(asked):
            return rankings
        queries = np.ascontiguousarray(vectors[asked])
        k = min(k, count)
        if allowed is not None and (count <= max(FEW, k) or not can_select(self._faiss)):
            found = compare_rows(queries, k, np.flatnonzero(allowed), self._stored)
        else:
            found = self._candidates(queries, k, count, allowed)
        for place, ranking in zip(asked.tolist(), found, strict=True):
            rankings[place] = ranking
        return rankings

    def _stored(self, rows: npt.NDArray[np.int64]) -> Vectors:
        """Stored vectors of rows; from FAISS's file where it holds the same ones, in one piece."""
        if self.manifest.faiss.factory == "Flat":
            return vectors_of(self._faiss, rows)
        return self.rows.vectors(rows)

    def _candidates(self, queries: Vectors, k: int, count: int, allowed: npt.NDArray[np.bool_] | None) -> list[Ranking]:
        """Ask FAISS, and score what it finds by the stored vectors, where its own are not these."""
        about = self.manifest.faiss
        exact = about.factory == "Flat"
        wanted = k if exact else min(count, max(_RESCORED * k, 64))
        scores, rows = search_faiss(self._faiss, queries, wanted, search=dict(about.search), allowed=allowed)
        if exact:
            # FAISS leaves equal scores in an order that follows its blocks.
            return [best_of(row[row >= 0], score[row >= 0], k) for row, score in zip(rows, scores, strict=True)]
        found = [row[row >= 0] for row in rows]
        return [best_of(row, self._scores(row, query), k) for query, row in zip(queries, found, strict=True)]

    def _scores(self, rows: npt.NDArray[np.int64], query: Vectors) -> Vectors:
        return self.rows.vectors(rows) @ query if len(rows) else np.zeros(0, np.float32)

    def _allowed(self, filter: Filter | None) -> npt.NDArray[np.bool_] | None:
        """Which rows may be found; None if all."""
        if filter is None:
            if not len(self._blank):
                return None
            allowed = np.ones(len(self), dtype=bool)
        else:
            allowed = self._metadata.allowed(filter)
        allowed[self._blank] = False
        return allowed

    # ------------------------------------------------------------------ faces

    def as_langchain(self) -> LangChainStore:
        """The index as LangChain's `VectorStore`; `.as_retriever()` makes a retriever of it.

        Raises:
            MissingExtraError: If langchain-core is not installed.
        """
        from langchain_grace.vector_store import GraceVectorStore

        return GraceVectorStore(self)

    def as_llama_index(self) -> LlamaIndexStore:
        """The index as LlamaIndex's vector store, for `VectorStoreIndex.from_vector_store`.

        Raises:
            MissingExtraError: If llama-index-core is not installed.
        """
        from llama_index.embeddings.grace.vector_store import GraceVectorStore

        return GraceVectorStore(self)

    # ------------------------------------------------------------------ details

    def _check(self, embedder: GraceEmbedder) -> None:
        """Refuse an embedder whose vectors cannot be compared with the stored ones."""
        if self.manifest.identity is not None:
            stored, own = self.manifest.identity, embedder.vector_identity(self.manifest.rationale)
            if self._engine == embedder.pipeline.engine_name and own.differences(stored):
                own.by_engine_of(stored).require(stored, str(self.folder))
                made, now = stored.document, own.document
                warnings.warn(
                    f"{self.folder} was made by the engine {made.engine!r} ({made.dtype}), and queries are embedded by "
                    f"{now.engine!r} ({now.dtype}), as you asked. They round differently: vectors of the same text and "
                    "rationale agree to a cosine of .999, and where the model hesitates between two words it may write "
                    "another rationale for a query.",
                    stacklevel=3,
                )
                return
            own.require(stored, str(self.folder))
        elif (dimension := embedder.get_embedding_dimension()) != self.dimension:
            raise ModelMismatchError(
                f"{self.folder} holds vectors of {self.dimension} dimensions, and {embedder.pipeline.name!r} makes "
                f"vectors of {dimension}. Open it with the model that made them."
            )

    def _blank_rows(self) -> npt.NDArray[np.int64]:
        start, rows = 0, []
        for shard in self.manifest.shards:
            rows += [start + place for place in shard.blank]
            start += shard.rows
        return np.array(rows, dtype=np.int64)


def _check_k(k: object) -> None:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InputError(f"k={k!r}: give a positive whole number.")
