"""What an untrained policy can do: text, echo and rationale, as they are and centred, and rationales as words for BM25.

    PYTHONPATH=benchmarks python -m programs.untrained ../shared/data/retrieval/medline --cache rationales.sqlite

Nothing is chosen on the collections: means and directions come from a sample of the documents and their first words.
A run that was stopped goes on with the rationales and vectors in the cache.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from grace_benchmarks.record import write_result
from grace_benchmarks.retrieval.collection import Collection, load_beir
from grace_benchmarks.retrieval.metrics import Ranking, per_query, significance, summary
from grace_benchmarks.retrieval.names import LEXICAL, MODES
from grace_benchmarks.retrieval.rankers import BM25, fuse, rank_vectors
from grace_retrieval import GraceEmbedder
from grace_retrieval.centring import Centring, first_words
from grace_retrieval.indexing.centre import SAMPLE
from grace_retrieval.threads import hold_torch

PROMPTS = {
    "default": None,
    "short": (
        "Say in one short sentence what the document is about. Name its subject, method and result.",
        "Say in one short sentence what the searcher wants to know.",
    ),
}


def main(
    collections: Annotated[list[Path], typer.Argument(help="Folders in BEIR layout.")],
    model: Annotated[str, typer.Option(help="Model.")] = "SmolLM2-135M-Instruct",
    prompts: Annotated[str, typer.Option(help="default or short.")] = "default",
    budget: Annotated[int, typer.Option(help="Most tokens of a rationale.")] = 64,
    sentences: Annotated[int, typer.Option(help="Most sentences of a rationale; 0 is any number.")] = 0,
    length: Annotated[int, typer.Option(help="Most tokens of a prompt with its text.")] = 320,
    cache: Annotated[str, typer.Option(help="Where rationales are kept.")] = "default",
    modes: Annotated[str, typer.Option(help="Of text, echo, rationale, crossed.")] = "text,echo,rationale,crossed",
    most: Annotated[int, typer.Option("--documents", help="Most documents, by chance; 0 is all.")] = 0,
    sample: Annotated[int, typer.Option(help="Documents, and first words of them, that means are taken of.")] = SAMPLE,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
) -> None:
    """Measure, print, and keep the rows."""
    hold_torch(threads)
    embedder = GraceEmbedder(
        model,
        cache=cache,
        max_new_tokens=budget,
        max_sentences=sentences,
        max_seq_length=length,
        on_truncation="ignore",
    )
    if (chosen := PROMPTS[prompts]) is not None:
        embedder.prompts = {"document": chosen[0], "query": chosen[1]}
    rows: list[dict[str, Any]] = []
    for folder in collections:
        collection = _some(load_beir(folder), most)
        rankings: dict[str, Ranking] = {"bm25": BM25(collection).rank()}
        rationales = {
            name: _encoded(embedder, collection, mode, sample) for name, mode in MODES.items() if name in modes
        }
        ended: dict[str, float] = {}
        for name, (documents, queries, asked, kept) in rationales.items():
            for centred, moved in _centred(documents.vectors, queries.vectors, asked).items():
                rankings[f"{name}{centred}"] = rank_vectors(collection, moved[1], moved[0])
                rankings[f"hybrid of {name}{centred}"] = fuse(rankings["bm25"], rankings[f"{name}{centred}"])
            if name == "rationale":
                ended = kept
                for column, wanted in LEXICAL.items():
                    rankings[column] = _with_words(collection, documents, queries, wanted)
                rankings["hybrid of rationale, bm25-documents"] = fuse(
                    rankings["bm25-documents"], rankings["rationale, centred"]
                )
        values = {name: per_query(collection, ranking) for name, ranking in rankings.items()}
        for name, found in values.items():
            row = {
                "collection": folder.name,
                "documents": len(collection.documents),
                "queries": len(collection.queries),
            }
            row |= {"column": name, "prompts": prompts, **summary(found), **ended}
            row["p against bm25"] = significance(found["nDCG@10"], values["bm25"]["nDCG@10"])
            rows.append(row)
            Console().print(f"{folder.name:10} {name:40} {row['nDCG@10']:.3f}")
    names = "-".join(folder.name for folder in collections)
    way = (f"{most}-" if most else "") + prompts + (f"-{sentences}" if sentences else "")
    path = write_result(
        "untrained",
        rows,
        file=f"untrained-{names}-{way}",
        model=model,
        budget=budget,
        sentences=sentences,
        length=length,
        sample=sample,
        modes=modes,
    )
    Console().print(f"Rows in {path}")


def _some(collection: Collection, most: int) -> Collection:
    """So many documents by chance, and the queries that are answered by one of them."""
    if not most or most >= len(collection.documents):
        return collection
    kept = set(random.Random(0).sample(sorted(collection.documents), most))
    qrels = {
        query: {name: grade for name, grade in judged.items() if name in kept}
        for query, judged in collection.qrels.items()
    }
    asked = {query for query, judged in qrels.items() if any(grade > 0 for grade in judged.values())}
    return replace(
        collection,
        documents={name: text for name, text in collection.documents.items() if name in kept},
        queries={name: text for name, text in collection.queries.items() if name in asked},
        qrels={name: judged for name, judged in qrels.items() if name in asked},
    )


def _encoded(
    embedder: GraceEmbedder, collection: Collection, mode: tuple[Any, Any], count: int
) -> tuple[Any, Any, Any, Any]:
    """Vectors and rationales of documents and queries; vectors of first words; how many rationales ended."""
    texts, asked = list(collection.documents.values()), list(collection.queries.values())
    documents = embedder.encode_with_rationales(texts, "document", rationale=mode[0])
    queries = embedder.encode_with_rationales(asked, "query", rationale=mode[1])
    sample = np.random.default_rng(0).permutation(len(texts))[:count]
    words = embedder.encode_with_rationales(first_words([texts[place] for place in sample]), "query", rationale=mode[1])
    kept = {
        "documents_ended": round(float(np.mean([not row.truncated for row in documents.rationales])), 3),
        "queries_ended": round(float(np.mean([not row.truncated for row in queries.rationales])), 3),
        "tokens_of_documents": round(float(np.mean([len(row.token_ids) for row in documents.rationales])), 1),
        "tokens_of_queries": round(float(np.mean([len(row.token_ids) for row in queries.rationales])), 1),
    }
    return documents, queries, (sample, words.vectors), kept


def _centred(documents: Any, queries: Any, asked: Any) -> dict[str, tuple[Any, Any]]:
    """Documents and queries as they are, centred, without three directions as well, and by the queries themselves."""
    sample, words = asked
    found = {"": (documents, queries)}
    for name, about, directions in (
        (", centred", words, 0),
        (", centred, 3 directions", words, 3),
        (", centred by its queries", queries, 0),  # no judgement is looked at
    ):
        centring = Centring.fit(documents[sample], about, directions)
        found[name] = centring.of_vectors(documents, "document"), centring.of_vectors(queries, "query")
    return found


def _with_words(collection: Collection, documents: Any, queries: Any, wanted: tuple[bool, bool]) -> Ranking:
    """BM25 with what was written behind documents, queries or both."""
    texts = [dict(collection.documents), dict(collection.queries)]
    for found, written, with_them in zip(texts, (documents, queries), wanted, strict=True):
        if with_them:
            found |= {
                name: f"{text}\n{row.text}"
                for (name, text), row in zip(list(found.items()), written.rationales, strict=True)
            }
    return BM25(replace(collection, documents=texts[0], queries=texts[1])).rank()


if __name__ == "__main__":
    typer.run(main)
