"""Sets of an evaluation: drawn, embedded by role, and measured."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from grace_retrieval.errors import InputError
from grace_training.data import open_rows
from grace_training.evaluation.plan import Evaluation, EvaluationSet, RetrievalSet, SimilaritySet

if TYPE_CHECKING:
    from grace_benchmarks.retrieval.collection import Collection

__all__ = ["LoadedSet", "draw_collection", "load_set"]

Vectors = Mapping[str, npt.NDArray[np.float32]]
"""Unit vectors by role. Shape of each: (texts, dim)."""

T = TypeVar("T")


class LoadedSet(Protocol):
    """Texts to embed, and what to make of their embeddings."""

    @property
    def texts(self) -> Mapping[str, Sequence[str]]:
        """Texts by role, "query" and "document"; texts that have no role are documents."""
        ...

    def describe(self) -> dict[str, Any]:
        """Sizes and digest, for rows."""
        ...

    def measure(self, vectors: Vectors) -> dict[str, Any]:
        """`measure` (its name), `value` (higher is better), and perhaps `per_query`."""
        ...


def load_set(entry: EvaluationSet, evaluation: Evaluation) -> LoadedSet:
    """Read a set and draw its sample.

    Args:
        entry: The set.
        evaluation: Says where files are, and the seed.

    Raises:
        InputError: If a file cannot be used.
    """
    choose = random.Random(evaluation.seed)
    if isinstance(entry, RetrievalSet):
        return _retrieval(entry, evaluation, choose)
    if isinstance(entry, SimilaritySet):
        rows = _rows(evaluation, entry.path, (entry.first, entry.second, entry.score))
        rows = _draw(rows, entry.pairs, choose)
        first, second, score = (list(column) for column in zip(*rows, strict=True))
        return _Similarity(first, second, [_number(entry, evaluation, value) for value in score])
    train, test = (
        _draw_per_label(_rows(evaluation, path, (entry.text, entry.label)), count, choose)
        for path, count in ((entry.train, entry.train_per_label), (entry.test, entry.test_per_label))
    )
    return _Classification(train, test, entry.neighbours)


def _number(entry: SimilaritySet, evaluation: Evaluation, value: object) -> float:
    """A score of a pair."""
    try:
        number = float(value)  # type: ignore[arg-type]  # what it is not, it says
    except (TypeError, ValueError):
        number = math.nan
    if math.isfinite(number):
        return number
    raise InputError(
        f"{evaluation.name}, set {entry.name}: {evaluation.path_of(entry.path)} has {value!r} in column "
        f"{entry.score!r}: give a number a pair, or name another column with score."
    )


# ---------------------------------------------------------------------- retrieval


def _retrieval(entry: RetrievalSet, evaluation: Evaluation, choose: random.Random) -> LoadedSet:
    from grace_benchmarks.retrieval.collection import Pairs, load_beir, load_pairs

    path = evaluation.path_of(entry.path)
    if path.is_dir():
        collection = load_beir(path, entry.split)
    else:
        collection = load_pairs(Pairs(path=str(path), query=entry.query, document=entry.document))
    drawn = draw_collection(
        collection,
        queries=entry.queries,
        documents=entry.documents,
        most_relevant=entry.most_relevant,
        choose=choose,
    )
    return _Retrieval(replace(drawn, name=entry.name))


def draw_collection(
    collection: Collection,
    *,
    queries: int | None,
    documents: int | None,
    most_relevant: int | None = None,
    choose: random.Random,
) -> Collection:
    """Draw queries, and documents among which all relevant ones of these queries are.

    Args:
        collection: The whole collection.
        queries: Queries to draw; None takes all.
        documents: Documents to keep; None keeps all. Where there are more relevant ones, all of them are kept.
        most_relevant: Draw only from queries with at most so many relevant documents; None draws from all.
        choose: Draws.

    Returns:
        The sample, in the order of the collection.

    Raises:
        InputError: If no query has so few relevant documents.
    """
    relevant = {q: [d for d, score in judged.items() if score > 0] for q, judged in collection.qrels.items()}
    names = [q for q in collection.queries if most_relevant is None or len(relevant[q]) <= most_relevant]
    if not names:
        raise InputError(f"{collection.name}: every query has more than most_relevant={most_relevant} documents.")
    drawn = set(_draw(names, queries, choose))
    # A query that is itself a document of the collection stays one.
    wanted = {d for q in drawn for d in relevant[q]} | {
        collection.excluded[q] for q in drawn & collection.excluded.keys()
    }
    wanted &= collection.documents.keys()
    if documents is None:
        kept = set(collection.documents)
    else:
        others = [d for d in collection.documents if d not in wanted]
        kept = wanted | set(_draw(others, max(0, documents - len(wanted)), choose))
    return replace(
        collection,
        documents={d: text for d, text in collection.documents.items() if d in kept},
        queries={q: text for q, text in collection.queries.items() if q in drawn},
        qrels={q: judged for q, judged in collection.qrels.items() if q in drawn},
        excluded={q: d for q, d in collection.excluded.items() if q in drawn},
        unknown=len({d for q in drawn for d in relevant[q]} - collection.documents.keys()),
    )


@dataclass(frozen=True)
class _Retrieval:
    collection: Collection

    @property
    def texts(self) -> Mapping[str, Sequence[str]]:
        return {
            "query": list(self.collection.queries.values()),
            "document": list(self.collection.documents.values()),
        }

    def describe(self) -> dict[str, Any]:
        return self.collection.describe()

    def measure(self, vectors: Vectors) -> dict[str, Any]:
        from grace_benchmarks.retrieval.metrics import per_query, summary
        from grace_benchmarks.retrieval.rankers import rank_vectors

        values = per_query(self.collection, rank_vectors(self.collection, vectors["query"], vectors["document"]))
        found = summary(values)
        return {"measure": "nDCG@10", "value": found["nDCG@10"], **found, "per_query": values}


# ---------------------------------------------------------------------- similarity


@dataclass(frozen=True)
class _Similarity:
    first: list[str]
    second: list[str]
    scores: list[float]

    @property
    def texts(self) -> Mapping[str, Sequence[str]]:
        return {"document": [*self.first, *self.second]}

    def describe(self) -> dict[str, Any]:
        return {"pairs": len(self.scores), "digest": _digest([self.first, self.second, self.scores])}

    def measure(self, vectors: Vectors) -> dict[str, Any]:
        from scipy.stats import spearmanr

        first, second = np.split(vectors["document"], 2)
        cosines = (first.astype(np.float64) * second).sum(1)
        if np.ptp(cosines) == 0:
            raise InputError("All pairs have the same cosine: the model tells no texts apart, and no rank is defined.")
        return {"measure": "Spearman", "value": round(float(spearmanr(cosines, self.scores).statistic), 4)}


# ---------------------------------------------------------------------- classification


@dataclass(frozen=True)
class _Classification:
    train: list[tuple[str, str]]
    test: list[tuple[str, str]]
    neighbours: int

    @property
    def texts(self) -> Mapping[str, Sequence[str]]:
        return {"document": [text for text, _ in (*self.train, *self.test)]}

    def describe(self) -> dict[str, Any]:
        labels = {label for _, label in self.train}
        return {
            "train": len(self.train),
            "test": len(self.test),
            "labels": len(labels),
            "digest": _digest([self.train, self.test]),
        }

    def measure(self, vectors: Vectors) -> dict[str, Any]:
        from sklearn.neighbors import KNeighborsClassifier

        places = len(self.train)
        known, asked = vectors["document"][:places], vectors["document"][places:]
        neighbours = KNeighborsClassifier(min(self.neighbours, places), metric="cosine", algorithm="brute")
        neighbours.fit(known, [label for _, label in self.train])
        value = neighbours.score(asked, [label for _, label in self.test])
        return {"measure": "accuracy", "value": round(float(value), 4)}


# ---------------------------------------------------------------------- drawing


def _rows(evaluation: Evaluation, path: str, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    data, name = open_rows(evaluation.path_of(path))
    if missing := [column for column in columns if column not in data.column_names]:
        raise InputError(f"{name} has no column {missing[0]!r}, but {', '.join(data.column_names)}.")
    return list(zip(*(list(data[column]) for column in columns), strict=True))


def _draw(items: list[T], count: int | None, choose: random.Random) -> list[T]:
    """So many items, in their order."""
    if count is None or count >= len(items):
        return items
    return [items[place] for place in sorted(choose.sample(range(len(items)), count))]


def _draw_per_label(rows: list[tuple[Any, ...]], count: int | None, choose: random.Random) -> list[tuple[str, str]]:
    labels: dict[str, list[str]] = {}
    for text, label in rows:
        labels.setdefault(str(label), []).append(text)
    return [(text, label) for label in sorted(labels) for text in _draw(labels[label], count, choose)]


def _digest(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()
