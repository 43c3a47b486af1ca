"""Systems that rank documents: BM25, embedding models, and both together."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_benchmarks.retrieval.collection import Collection
from grace_benchmarks.retrieval.metrics import Ranking
from grace_retrieval.centring import Centring, first_words
from grace_retrieval.errors import InputError, MissingExtraError
from grace_retrieval.fetching import fetch, is_fetched_name
from grace_retrieval.indexing.centre import SAMPLE
from grace_retrieval.indexing.hybrid import KeywordIndex

__all__ = ["BM25", "DEPTH", "centre", "fuse", "open_model", "rank_vectors"]

Vectors = npt.NDArray[np.float32]
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


def centre(
    texts: Sequence[str], documents: Vectors, queries: Vectors, embedder: Any, options: Mapping[str, Any]
) -> tuple[Vectors, Vectors]:
    """Take away what all vectors have in common, as `fit_centring` does it on a sample of a corpus without queries.

    Args:
        texts: The documents' texts.
        documents: Their vectors. Shape: (documents, dim).
        queries: Vectors of the queries, which nothing is fitted on. Shape: (queries, dim).
        embedder: What made them.
        options: How queries were embedded.

    Returns:
        Both, of length 1.
    """
    sample = np.random.default_rng(0).permutation(len(texts))[:SAMPLE]
    asked = np.asarray(embedder.encode_query(first_words([texts[place] for place in sample]), **options))
    fitted = Centring.fit(documents[sample], asked)
    return fitted.of_vectors(documents, "document"), fitted.of_vectors(queries, "query")


class BM25:
    """BM25 with English stop words and no stemming (bm25s): the one of hybrid search over an index.

    Args:
        collection: What is indexed.

    Raises:
        MissingExtraError: If bm25s is not installed.
    """

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._ids = list(collection.documents)
        try:
            self._words = KeywordIndex(collection.documents.values())
        except MissingExtraError as error:
            raise MissingExtraError("bm25s", "bench", "BM25") from error

    def rank(self) -> Ranking:
        """Rank the documents of every query that share a word with it."""
        found = self._words.search(list(self._collection.queries.values()), DEPTH + 1)
        return _ranking(self._collection, self._ids, found)

    def query_ms(self, queries: int = 16) -> float:
        """Median milliseconds of one query alone, over the first few."""
        taken = []
        for text in list(self._collection.queries.values())[:queries]:
            started = time.perf_counter()
            self._words.search([text], DEPTH + 1)
            taken.append(time.perf_counter() - started)
        return round(statistics.median(taken) * 1e3, 2)


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
    places = np.argsort(-scores, axis=1, kind="stable")
    # Zeros are vectors of blank texts: as in an index, they find nothing and are not found.
    asked, there = (np.atleast_1d(rows.any(axis=1)) for rows in (queries, documents))
    found = []
    for query, row in enumerate(places):
        best = row[there[row]][: DEPTH + 1] if asked[query] else row[:0]
        found.append((best, scores[query, best]))
    return _ranking(collection, list(collection.documents), found)


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


def _ranking(collection: Collection, ids: list[str], found: Sequence[tuple[Any, Any]]) -> Ranking:
    ranking = {}
    for query, (places, scores) in zip(collection.queries, found, strict=True):
        itself = collection.excluded.get(query)
        named = [(ids[p], float(s)) for p, s in zip(places, scores, strict=True) if ids[p] != itself]
        ranking[query] = dict(named[:DEPTH])
    return ranking
