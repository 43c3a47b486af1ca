"""What embedding costs: measured on a few texts without a cache, so that a resumed run says the same."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

from grace_benchmarks.retrieval.collection import Collection
from grace_retrieval.rationale import RationaleMode

__all__ = ["embedding_costs", "text_only"]

DOCUMENTS = 32
QUERIES = 16


def embedding_costs(
    collection: Collection, embedder: Any, *, rationale: RationaleMode, query_rationale: RationaleMode, seed: int = 0
) -> dict[str, Any]:
    """Measure a model on a sample of a collection.

    Args:
        collection: Where the texts come from.
        embedder: GraceEmbedder or SentenceTransformer.
        rationale: What is embedded behind documents.
        query_rationale: What is embedded behind queries.
        seed: Seed of the choice of texts.

    Returns:
        `query_ms` (median wall time of one query alone), `documents_per_second` (a batch), `rationale_tokens` (mean a
        document) and `query_rationale_tokens`.
    """
    choose = random.Random(seed)
    documents = choose.sample(list(collection.documents.values()), min(DOCUMENTS, len(collection.documents)))
    queries = choose.sample(list(collection.queries.values()), min(QUERIES, len(collection.queries)))
    grace = hasattr(embedder, "pipeline")
    options: dict[str, Any] = {"rationale": rationale} if grace else {}
    asking: dict[str, Any] = {"rationale": query_rationale} if grace else {}
    with _no_cache(embedder) if grace else text_only(None):
        embedder.encode_query(queries[:1], **asking)  # loads what is loaded at first use
        before = _tokens(embedder)
        started = time.perf_counter()
        embedder.encode_document(documents, **options)
        seconds = time.perf_counter() - started
        middle = _tokens(embedder)
        taken = [_seconds(embedder.encode_query, [query], asking) for query in queries]
        after = _tokens(embedder)
    return {
        "query_ms": round(statistics.median(taken) * 1e3, 2),
        "documents_per_second": round(len(documents) / seconds, 2),
        "rationale_tokens": round((middle - before) / len(set(documents)), 1),
        "query_rationale_tokens": round((after - middle) / len(queries), 1),
        "cost_sample": {"documents": len(documents), "queries": len(queries), "seed": seed},
    }


@contextmanager
def text_only(embedder: Any) -> Any:
    """Let a GraceEmbedder embed texts alone, for callers that cannot ask for it (mteb); None changes nothing."""
    if embedder is None:
        yield
        return
    before, embedder.pipeline.options.rationale = embedder.pipeline.options.rationale, False
    try:
        yield
    finally:
        embedder.pipeline.options.rationale = before


@contextmanager
def _no_cache(embedder: Any) -> Any:
    before, embedder.pipeline.cache = embedder.pipeline.cache, None
    try:
        yield
    finally:
        embedder.pipeline.cache = before


def _tokens(embedder: Any) -> int:
    return int(embedder.pipeline.engine.statistics()["new_tokens"]) if hasattr(embedder, "pipeline") else 0


def _seconds(encode: Callable[..., Any], texts: Sequence[str], options: dict[str, Any]) -> float:
    started = time.perf_counter()
    encode(texts, **options)
    return time.perf_counter() - started
