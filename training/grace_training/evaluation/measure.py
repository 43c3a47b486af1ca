"""A trained model measured: embeddings of a set by role, and what training may have done to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from grace_retrieval import GraceEmbedder, InputError
from grace_retrieval.centring import LEAST_TEXTS, Centring, first_words
from grace_training.data import open_rows
from grace_training.evaluation.plan import Column, Evaluation
from grace_training.evaluation.sets import LoadedSet
from grace_training.health import (
    compression_ratio,
    distinct_2,
    effective_rank,
    format_share,
    mean_cosine,
    perplexity,
    uniformity,
)

__all__ = ["HeldOutTexts", "measure_health", "measure_perplexity", "measure_set", "open_for_evaluation"]


def open_for_evaluation(folder: str | Path, evaluation: Evaluation, *, device: str | None = None) -> Any:
    """Open a trained model without a cache: every model has rationales of its own.

    Args:
        folder: The model.
        evaluation: Says how long rationales may be.
        device: Such as "cuda"; None chooses.

    Returns:
        A GraceEmbedder, or a SentenceTransformer if the model writes no rationales.
    """
    from grace_benchmarks.retrieval.rankers import open_model

    return open_model(str(folder), cache=None, device=device, max_new_tokens=evaluation.max_new_tokens)


def measure_set(model: Any, loaded: LoadedSet, column: Column, centre: int = 0) -> dict[str, Any]:
    """Embed the texts of a set, once each, and measure.

    Args:
        model: From `open_for_evaluation`.
        loaded: The set.
        column: How texts are embedded.
        centre: As in Evaluation.

    Returns:
        What the set says, and the mean number of tokens the model wrote by role. With `centre`, of a set of queries
        and documents also the value of centred vectors, under "centred".
    """
    vectors, tokens = {}, {}
    for role, texts in loaded.texts.items():
        before = _new_tokens(model)
        unique = list(dict.fromkeys(texts))
        places = {text: place for place, text in enumerate(unique)}
        encode = model.encode_query if role == "query" else model.encode_document
        vectors[role] = np.asarray(encode(unique, **_options(model, column)))[[places[text] for text in texts]]
        tokens[role] = round((_new_tokens(model) - before) / len(unique), 1)
    found = {**loaded.measure(vectors), "new_tokens": tokens}
    texts = loaded.texts["document"]
    if centre and "query" in vectors and len(texts) >= LEAST_TEXTS:
        sample = np.random.default_rng(0).permutation(len(texts))[:centre]
        words = model.encode_query(first_words([texts[place] for place in sample]), **_options(model, column))
        fitted = Centring.fit(vectors["document"][sample], np.asarray(words))
        moved = {role: fitted.of_vectors(vectors[role], role) for role in ("query", "document")}
        found["centred"] = loaded.measure(moved)["value"]
    return found


class HeldOutTexts:
    """Queries and documents on which the measures of health are taken.

    Args:
        evaluation: Its `held_out` says where they are.

    Raises:
        InputError: If it says nothing, or the file cannot be used.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        entry = evaluation.held_out
        if entry is None:
            raise InputError(f"{evaluation.name} has no held_out: say where the texts are.")
        data, name = open_rows(evaluation.path_of(entry.path))
        if missing := [column for column in (entry.query, entry.document) if column not in data.column_names]:
            raise InputError(f"{name} has no column {missing[0]!r}, but {', '.join(data.column_names)}.")
        rows = data.shuffle(seed=evaluation.seed).select(range(min(entry.texts, len(data))))
        self.queries: list[str] = list(rows[entry.query])
        self.documents: list[str] = list(rows[entry.document])
        self.texts = [f"{q}\n\n{d}" for q, d in zip(self.queries, self.documents, strict=True)]


def measure_perplexity(model: GraceEmbedder, texts: Sequence[str]) -> dict[str, float]:
    """Perplexity of held-out texts; see `grace_training.health.perplexity`."""
    return perplexity(model.pipeline.module, model.tokenizer, texts)


def measure_health(model: Any, held_out: HeldOutTexts, column: Column) -> dict[str, float]:
    """The spread of the embeddings of unrelated documents, and with rationales what these are like.

    Args:
        model: From `open_for_evaluation`.
        held_out: Texts.
        column: How texts are embedded.

    Returns:
        `mean_cosine`, `effective_rank` and `uniformity` of the documents; with rationales also the mean `tokens` of
        documents and `query_tokens`, the shares `truncated` and `query_truncated`, `distinct_2`, `compression_ratio`
        and `format_share`.
    """
    options = _options(model, column)
    if column != "rationale":
        return _spread(np.asarray(model.encode_document(held_out.documents, **options)))
    written = model.rationales(held_out.documents, "document")
    asked = model.rationales(held_out.queries, "query")
    vectors = np.asarray(model.encode_document(held_out.documents, rationales=written, **options))
    return {
        **_spread(vectors),
        "tokens": _mean([len(r.token_ids) for r in written]),
        "query_tokens": _mean([len(r.token_ids) for r in asked]),
        "truncated": _mean([r.truncated for r in written]),
        "query_truncated": _mean([r.truncated for r in asked]),
        "distinct_2": round(distinct_2([r.token_ids for r in written]), 4),
        "compression_ratio": round(compression_ratio([r.text for r in written]), 4),
        "format_share": round(format_share(written), 4),
    }


def _spread(vectors: Any) -> dict[str, float]:
    measures = {"mean_cosine": mean_cosine, "effective_rank": effective_rank, "uniformity": uniformity}
    return {name: round(measure(vectors), 4) for name, measure in measures.items()}


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 4)


def _options(model: Any, column: Column) -> dict[str, Any]:
    """How `encode` embeds a column, whatever the model was saved with."""
    from grace_benchmarks.retrieval.names import MODES

    return {"rationale": MODES[column][0]} if isinstance(model, GraceEmbedder) else {}


def _new_tokens(model: Any) -> int:
    counts: Mapping[str, int] = model.pipeline.engine.statistics() if isinstance(model, GraceEmbedder) else {}
    return int(counts.get("new_tokens", 0))
