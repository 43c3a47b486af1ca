"""Retrieval quality of a model with and without rationales, beside BM25, on test collections.

    python -m grace_benchmarks.retrieval --data ../shared/data

Sets: arxiv (title → abstract of its test papers), nfcorpus, cranfield, medline, covidqa. Exact search by cosine,
metrics by ir-measures. Rationales go through the cache, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import bm25s
import ir_measures
import numpy as np
import pyarrow.parquet as pq
import torch
import typer
from ir_measures import RR, R, ScoredDoc, nDCG
from rich.console import Console
from rich.table import Table

from grace_benchmarks.record import measure, write_result
from grace_retrieval import GraceEmbedder

SETS = ("arxiv", "nfcorpus", "cranfield", "medline", "covidqa")
MEASURES = {"nDCG@10": nDCG @ 10, "recall@100": R @ 100, "MRR@10": RR @ 10}
DEPTH = 100


@dataclass(frozen=True, kw_only=True)
class Collection:
    """A test collection: texts by id, and relevance by query and document."""

    documents: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]


Ranking = dict[str, dict[str, float]]
"""Scores of the best documents, by query and document."""


def load(folder: Path, name: str) -> Collection:
    """Load a collection in BEIR layout, or the arXiv test papers."""
    if name == "arxiv":
        rows = pq.read_table(folder / "arxiv" / "test.parquet", columns=["id", "title", "abstract"]).to_pylist()
        return Collection(
            documents={row["id"]: row["abstract"] for row in rows},
            queries={row["id"]: row["title"] for row in rows},
            qrels={row["id"]: {row["id"]: 1} for row in rows},
        )
    base = folder / "retrieval" / name
    documents = {
        row["_id"]: f"{row.get('title') or ''}\n\n{row['text']}".strip() for row in _lines(base / "corpus.jsonl")
    }
    texts = {row["_id"]: row["text"] for row in _lines(base / "queries.jsonl")}
    qrels: dict[str, dict[str, int]] = {}
    with open(base / "qrels" / "test.tsv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            qrels.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
    return Collection(documents=documents, queries={key: texts[key] for key in qrels}, qrels=qrels)


def _lines(path: Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def rank_bm25(collection: Collection) -> Ranking:
    """BM25 with English stop words and no stemming."""
    ids = list(collection.documents)
    index = bm25s.BM25()
    index.index(
        bm25s.tokenize(list(collection.documents.values()), stopwords="en", show_progress=False), show_progress=False
    )
    tokens = bm25s.tokenize(list(collection.queries.values()), stopwords="en", show_progress=False)
    found, scores = index.retrieve(tokens, k=min(DEPTH, len(ids)), show_progress=False)
    return {
        query: {ids[i]: float(score) for i, score in zip(places, row, strict=True)}
        for query, places, row in zip(collection.queries, found, scores, strict=True)
    }


def rank_embedder(collection: Collection, embedder: GraceEmbedder, *, rationale: bool) -> Ranking:
    """Exact search by cosine."""
    ids = list(collection.documents)
    documents = torch.from_numpy(embedder.encode_document(list(collection.documents.values()), rationale=rationale))
    queries = torch.from_numpy(embedder.encode_query(list(collection.queries.values()), rationale=rationale))
    scores, places = torch.topk(queries @ documents.T, min(DEPTH, len(ids)))
    return {
        query: {ids[i]: float(score) for i, score in zip(row_places, row_scores, strict=True)}
        for query, row_places, row_scores in zip(collection.queries, places.tolist(), scores.tolist(), strict=True)
    }


def evaluate(collection: Collection, ranking: Ranking) -> dict[str, float]:
    """Mean of every measure over the queries, and the standard error of nDCG@10."""
    run = [ScoredDoc(query, doc, score) for query, docs in ranking.items() for doc, score in docs.items()]
    qrels = [
        ir_measures.Qrel(query, doc, relevance)
        for query, docs in collection.qrels.items()
        for doc, relevance in docs.items()
    ]
    means = ir_measures.calc_aggregate(list(MEASURES.values()), qrels, run)
    single = [metric.value for metric in ir_measures.iter_calc([nDCG @ 10], qrels, run)]
    result = {name: round(float(means[measure]), 4) for name, measure in MEASURES.items()}
    result["nDCG@10 standard error"] = round(float(np.std(single) / len(single) ** 0.5), 4)
    return result


def main(
    data: Annotated[Path, typer.Option(help="Folder of the collections.")] = Path("../shared/data"),
    model: Annotated[str, typer.Option(help="Model.")] = "grace-nano",
    sets: Annotated[str, typer.Option(help="Sets, separated by commas.")] = ",".join(SETS),
    cache: Annotated[str, typer.Option(help="Cache: a path, or 'default'.")] = "default",
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 2,
    name: Annotated[str, typer.Option(help="Name of the result file.")] = "retrieval",
) -> None:
    """Measure and write the table."""
    torch.set_num_threads(threads)
    embedder = GraceEmbedder(model, cache=cache, on_truncation="ignore")
    rows: list[dict[str, Any]] = []
    for set_name in sets.split(","):
        collection = load(data, set_name)
        for ranker_name in ("BM25", "text only", "with rationale"):
            before = embedder.writer.engine.statistics()["texts"]
            with measure() as timing:
                if ranker_name == "BM25":
                    ranking = rank_bm25(collection)
                else:
                    ranking = rank_embedder(collection, embedder, rationale=ranker_name == "with rationale")
            rows.append(
                {
                    "set": set_name,
                    "model": ranker_name if ranker_name == "BM25" else f"{Path(model).name}, {ranker_name}",
                    "documents": len(collection.documents),
                    "queries": len(collection.queries),
                    **evaluate(collection, ranking),
                    "wall_seconds": round(timing.wall, 1),
                    "texts_seen_by_model": embedder.writer.engine.statistics()["texts"] - before,
                }
            )
            Console(stderr=True).print(rows[-1])
    write_result("retrieval", rows, file=name, threads=threads, model=Path(model).name)
    table = Table("model", *sets.split(","), title="nDCG@10")
    for label in dict.fromkeys(row["model"] for row in rows):
        table.add_row(label, *(f"{row['nDCG@10']:.3f}" for row in rows if row["model"] == label))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
