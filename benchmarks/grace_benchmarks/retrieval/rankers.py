"""Systems that rank documents: BM25, embedding models, and both together."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_benchmarks.retrieval.collection import Collection
from grace_benchmarks.retrieval.metrics import Ranking
from grace_retrieval.errors import InputError, MissingExtraError
from grace_retrieval.fetching import fetch, is_fetched_name

__all__ = ["BM25", "DEPTH", "fuse", "open_model", "rank_vectors"]

DEPTH = 100
RRF_K = 60


def open_model(name: str, **options: Any) -> Any:
    """Open a model: a GRACE model or causal LM as GraceEmbedder, another sentence-transformers model as what it is.

    Args:
        name: Bundled name, one that is fetched, folder or hub name; "st:NAME" insists on SentenceTransformer.
        **options: Of GraceEmbedder.

    Returns:
        A GraceEmbedder or a SentenceTransformer.
    """
    from sentence_transformers import SentenceTransformer

    from grace_retrieval import GraceEmbedder

    folder = str(fetch(bare)) if is_fetched_name(bare := name.removeprefix("st:")) else bare
    modules = Path(folder) / "modules.json"
    plain = modules.is_file() and "grace_retrieval" not in modules.read_text(encoding="utf-8")
    if name.startswith("st:") or plain:
        if "engine" in options:
            raise InputError(f"engine={options['engine']!r} runs policies that write, and {name!r} is none.")
        return SentenceTransformer(folder, trust_remote_code=False, device=options.get("device"))
    return GraceEmbedder(name, on_truncation="ignore", **options)


class BM25:
    """BM25 with English stop words and no stemming (bm25s).

    Args:
        collection: What is indexed.
    """

    def __init__(self, collection: Collection) -> None:
        try:
            import bm25s
        except ModuleNotFoundError as error:
            raise MissingExtraError("bm25s", "bench", "BM25") from error
        self._library = bm25s
        self._collection = collection
        self._index = bm25s.BM25()
        tokens = self._tokens(list(collection.documents.values()))
        # bm25s cannot index a corpus without a single word.
        self._empty = not tokens.vocab
        if not self._empty:
            self._index.index(tokens, show_progress=False)

    def rank(self) -> Ranking:
        """Rank the documents of every query that share a word with it."""
        found, scores = self._retrieve(list(self._collection.queries.values()))
        ranking = _ranking(self._collection, list(self._collection.documents), found, scores)
        # bm25s fills up to the depth with documents that match nothing, in an order that means nothing.
        return {query: {d: score for d, score in docs.items() if score > 0} for query, docs in ranking.items()}

    def query_ms(self, queries: int = 16) -> float:
        """Median milliseconds of one query alone, over the first few."""
        taken = []
        for text in list(self._collection.queries.values())[:queries]:
            started = time.perf_counter()
            self._retrieve([text])
            taken.append(time.perf_counter() - started)
        return round(statistics.median(taken) * 1e3, 2)

    def _retrieve(self, texts: list[str]) -> tuple[Any, Any]:
        if self._empty:
            return np.zeros((len(texts), 0), np.int64), np.zeros((len(texts), 0), np.float32)
        depth = min(DEPTH + 1, len(self._collection.documents))
        found, scores = self._index.retrieve(self._tokens(texts), k=depth, show_progress=False)
        return found, scores

    def _tokens(self, texts: list[str]) -> Any:
        return self._library.tokenize(texts, stopwords="en", show_progress=False)


def rank_vectors(
    collection: Collection, queries: npt.NDArray[np.float32], documents: npt.NDArray[np.float32]
) -> Ranking:
    """Exact search by cosine.

    Args:
        collection: The collection.
        queries: Vectors of its queries, in their order. Shape: (queries, dim).
        documents: Vectors of its documents, in their order. Shape: (documents, dim).
    """
    scores = queries @ documents.T
    # Of the same cosine the first document wins. One more, in case the query itself is among them.
    places = np.argsort(-scores, axis=1, kind="stable")[:, : DEPTH + 1]
    return _ranking(collection, list(collection.documents), places, np.take_along_axis(scores, places, 1))


def fuse(*rankings: Ranking) -> Ranking:
    """Reciprocal rank fusion: score = sum of 1 / (60 + rank) (Cormack, Clarke and Büttcher, SIGIR 2009).

    Args:
        *rankings: Rankings of the same queries.

    Example:
        >>> fuse({"q": {"a": 2.0, "b": 1.0}}, {"q": {"b": 0.5}})["q"]["b"] > 1 / 61
        True
    """
    fused: dict[str, Mapping[str, float]] = {}
    for query in rankings[0]:
        scores: dict[str, float] = {}
        for ranking in rankings:
            ordered = sorted(ranking.get(query, {}).items(), key=lambda item: -item[1])
            for rank, (document, _) in enumerate(ordered, 1):
                scores[document] = scores.get(document, 0.0) + 1.0 / (RRF_K + rank)
        best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[: DEPTH + 1]
        fused[query] = dict(best)
    return fused


def _ranking(collection: Collection, ids: list[str], places: Any, scores: Any) -> Ranking:
    ranking = {}
    for query, row_places, row_scores in zip(collection.queries, places, scores, strict=True):
        itself = collection.excluded.get(query)
        found = [(ids[p], float(s)) for p, s in zip(row_places, row_scores, strict=True) if ids[p] != itself]
        ranking[query] = dict(found[:DEPTH])
    return ranking
