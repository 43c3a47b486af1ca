"""Measures every system over every collection; what is in the result file already is not repeated."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from grace_benchmarks.record import Row, RowFile, measure, row_key
from grace_benchmarks.retrieval.collection import Collection
from grace_benchmarks.retrieval.costs import embedding_costs
from grace_benchmarks.retrieval.metrics import Ranking, against, per_query, summary
from grace_benchmarks.retrieval.names import DEFAULT_COLUMNS, LEXICAL, MODES, Column, model_name
from grace_benchmarks.retrieval.rankers import BM25, centre, fuse, open_model, rank_vectors
from grace_retrieval.atomic import replacing
from grace_retrieval.bundled import DEFAULT_MODEL
from grace_retrieval.corpus.runs import check_id, write_run
from grace_retrieval.engines.by_name import DEFAULT_ENGINE, check_engine
from grace_retrieval.errors import InputError
from grace_retrieval.threads import hold_torch

__all__ = ["RetrievalOptions", "run_retrieval"]


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions:
    """How retrieval is measured.

    Args:
        models: Names or folders.
        columns: Some of Column: "bm25", "text" (no rationale), "echo" (the text twice), "rationale", "crossed"
            (documents with rationale, queries without), "hybrid" (BM25 and the model, fused by rank), and
            "bm25-documents", "bm25-queries", "bm25-both" (BM25 with the model's rationales behind these).
        centre: Whether what all vectors have in common is taken away, fitted on a sample of the documents.
        max_new_tokens: Most tokens of a rationale, one row each; None is the model's setting.
        cache: Where rationales are kept.
        device: Such as "cuda".
        threads: Threads of torch.
        seed: Seed of samples and permutation tests.
        run: Number of this run: another number measures everything again.
        engine: What runs the models that write, by name.
        engine_options: Its options; JSON values.

    Raises:
        InputError: If a value is unknown or out of range.
    """

    models: Sequence[str] = (DEFAULT_MODEL,)
    columns: Sequence[Column] = DEFAULT_COLUMNS
    centre: bool = False
    max_new_tokens: Sequence[int | None] = (None,)
    cache: str | None = "default"
    device: str | None = None
    threads: int = 1
    seed: int = 0
    run: int = 1
    engine: str = DEFAULT_ENGINE
    engine_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def engine_identity(self) -> Row:
        """What decides a row beside the model; nothing for the default, so that older rows are found."""
        if self.engine == DEFAULT_ENGINE and not self.engine_options:
            return {}
        return {"engine": self.engine, "engine_options": dict(self.engine_options)}

    def identity(self, column: Column) -> Row:
        """What decides a row of a column, beside model and budget; nothing that is as it was in older rows."""
        if column == "bm25":
            return {}
        return {**self.engine_identity, **({"centre": True} if self.centre and column not in LEXICAL else {})}

    def __post_init__(self) -> None:
        """Check the values."""
        check_engine(self.engine, self.engine_options)
        unknown = [column for column in self.columns if column not in get_args(Column)]
        if unknown or not self.columns:
            raise InputError(f"columns {list(self.columns)}: give some of {', '.join(get_args(Column))}.")
        if self.threads < 1 or self.run < 1 or any(b is not None and b < 1 for b in self.max_new_tokens):
            raise InputError(
                f"threads={self.threads}, run={self.run}, max_new_tokens={list(self.max_new_tokens)}: give positive "
                "numbers; for no rationale there is the column 'text'."
            )


def run_retrieval(
    collections: Sequence[Collection],
    options: RetrievalOptions,
    *,
    out: RowFile,
    runs: Path | None = None,
    say: Callable[[Row], None] = lambda row: None,
) -> int:
    """Measure all systems.

    Args:
        collections: What is searched.
        options: How.
        out: Where rows go. A row that is there is not measured again.
        runs: Folder for a run file of TREC a row; a row without its file is measured again, and not added again.
        say: Called with every new row.

    Returns:
        How many rows were there already.

    Raises:
        InputError: If runs are to be written, and an id holds a blank.
    """
    if runs is not None:
        for collection in collections:
            for query in collection.queries:
                check_id(query, "query")
            for document in collection.documents:
                check_id(document, "document")
        runs.mkdir(parents=True, exist_ok=True)
    hold_torch(options.threads)
    finished = 0
    baselines = [_System(collection, options, runs=runs) for collection in collections]
    if "bm25" in options.columns:
        for system in baselines:
            finished += system.measure(out, say, "bm25")
    for name in options.models:
        for budget in options.max_new_tokens:
            systems = [
                _System(collection, options, name, budget, bm25, runs)
                for collection, bm25 in zip(collections, baselines, strict=True)
            ]
            embedder: Any = None
            for system in systems:
                for column in options.columns:
                    # Without a rationale, its budget says nothing: one row is enough.
                    again = column in ("text", "echo") and budget != options.max_new_tokens[0]
                    if column == "bm25" or again:
                        continue
                    if system.is_there(out, column):
                        finished += 1
                        continue
                    if embedder is None:
                        embedder = _open(name, budget, options)
                    finished += system.measure(out, say, column, embedder)
    return finished


def _open(name: str, budget: int | None, options: RetrievalOptions) -> Any:
    return open_model(
        name, cache=options.cache, device=options.device, max_new_tokens=budget, **options.engine_identity
    )


class _System:
    """One model over one collection, its rankings kept for what is fused from them."""

    def __init__(
        self,
        collection: Collection,
        options: RetrievalOptions,
        model: str = "BM25",
        budget: int | None = None,
        bm25: _System | None = None,
        runs: Path | None = None,
    ) -> None:
        self.collection = collection
        self.options = options
        self.model = model
        self.budget = budget
        self.bm25 = bm25 or self
        self.runs = runs
        self.data = collection.describe()
        self._rankings: dict[str, tuple[Ranking, Row]] = {}

    def identity(self, column: Column) -> Row:
        """What decides a row."""
        return {
            "kind": "retrieval",
            "model": model_name(self.model),
            "column": column,
            "max_new_tokens": None if column in ("bm25", "text", "echo") else self.budget,
            "threads": self.options.threads,
            "seed": self.options.seed,
            "run": self.options.run,
            **self.options.identity(column),
        }

    def key(self, column: Column) -> str:
        """Key of a row."""
        return row_key({**self.identity(column), "digest": self.data["digest"]})

    def measure(self, out: RowFile, say: Callable[[Row], None], column: Column, embedder: Any = None) -> int:
        """Append the row of a column, and write its run, unless they are there. Returns 1 if the row was."""
        if self.is_there(out, column):
            return 1
        ranking, costs = self.rank(column, embedder)
        if self.runs is not None:
            self._write(self.runs, column, ranking)
        if self.key(column) in out:
            return 1
        values = per_query(self.collection, ranking)
        row = {
            "key": self.key(column),
            **self.identity(column),
            "status": "ok",
            "data": self.data,
            **summary(values),
            **costs,
            "against": against(out, values, self.data["digest"], run=self.options.run, seed=self.options.seed),
            "per_query": values,
        }
        say(out.append(row))
        return 0

    def is_there(self, out: RowFile, column: Column) -> bool:
        """Whether a column's row is there, and its run, if one is wanted."""
        return self.key(column) in out and (self.runs is None or self._run_file(self.runs, column).exists())

    def _run_file(self, folder: Path, column: Column) -> Path:
        """A name that tells what it is to people, and by a piece of the key what it is in truth."""
        budget = [] if self.budget is None else [str(self.budget)]
        words = [self.data["name"], model_name(self.model), column, *budget, self.key(column)[:8]]
        return folder / ("_".join(re.sub(r"[^\w.]+", "-", word).strip("-") for word in words) + ".trec")

    def _write(self, folder: Path, column: Column, ranking: Ranking) -> None:
        path = self._run_file(folder, column)
        tag = "-".join(f"{model_name(self.model)} {column}".split())
        with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as stream:
            write_run(stream, ranking.items(), tag)

    def rank(self, column: Column, embedder: Any) -> tuple[Ranking, Row]:
        """The ranking of a column and what it cost."""
        if column not in self._rankings:
            self._rankings[column] = self._rank(column, embedder)
        return self._rankings[column]

    def _rank(self, column: Column, embedder: Any) -> tuple[Ranking, Row]:
        if column == "bm25":
            with measure() as timing:
                system = BM25(self.collection)
                ranking = system.rank()
            return ranking, {
                "wall_seconds": round(timing.wall, 2),
                "query_ms": system.query_ms(),
                "rationale_tokens": 0.0,
                "query_rationale_tokens": 0.0,
            }
        grace = hasattr(embedder, "pipeline")
        if column == "hybrid":
            lexical, _ = self.bm25.rank("bm25", None)
            dense, costs = self.rank("rationale" if grace and "rationale" in self.options.columns else "text", embedder)
            return fuse(lexical, dense), costs
        if column != "text" and not grace:
            raise InputError(f"{self.model} writes no rationales: leave the column {column!r} out.")
        if column in LEXICAL:
            return self._rank_words(column, embedder)
        modes = MODES[column]
        texts, asked = list(self.collection.documents.values()), list(self.collection.queries.values())
        before = embedder.pipeline.engine.statistics()["texts"] if grace else 0
        with measure() as timing:
            documents = np.asarray(embedder.encode_document(texts, **({"rationale": modes[0]} if grace else {})))
            queries_ = np.asarray(embedder.encode_query(asked, **({"rationale": modes[1]} if grace else {})))
            if self.options.centre:
                options = {"rationale": modes[1]} if grace else {}
                documents, queries_ = centre(texts, documents, queries_, embedder, options)
        ranking = rank_vectors(self.collection, queries_, documents)
        seen = embedder.pipeline.engine.statistics()["texts"] - before if grace else len(documents) + len(queries_)
        return ranking, {
            "wall_seconds": round(timing.wall, 2),
            "texts_seen_by_model": seen,
            "identity": embedder.vector_identity(modes[0]).digest() if grace else None,
            **embedding_costs(
                self.collection, embedder, rationale=modes[0], query_rationale=modes[1], seed=self.options.seed
            ),
        }

    def _rank_words(self, column: Column, embedder: Any) -> tuple[Ranking, Row]:
        """BM25 over texts and what the model wrote about them."""
        with_documents, with_queries = LEXICAL[column]
        with measure() as timing:
            documents, queries = dict(self.collection.documents), dict(self.collection.queries)
            for texts, role, wanted in ((documents, "document", with_documents), (queries, "query", with_queries)):
                if wanted:
                    written = embedder.rationales(list(texts.values()), role)
                    texts |= {
                        name: f"{text}\n{row.text}"
                        for (name, text), row in zip(list(texts.items()), written, strict=True)
                    }
            system = BM25(replace(self.collection, documents=documents, queries=queries))
            ranking = system.rank()
        return ranking, {"wall_seconds": round(timing.wall, 2), "query_ms": system.query_ms()}
