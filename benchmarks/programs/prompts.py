"""Prompts for a small policy that was not trained: which make it write to the point, and stop?

    PYTHONPATH=benchmarks python -m programs.prompts ../shared/data --cache prompts.sqlite

Titles and abstracts of arXiv's dev split, and questions and answers of MedQuAD, 100 pairs each: nothing that is
evaluated on. nDCG@10 of finding each query's own document, as the vectors are and with the means taken away.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet as pq
import typer
from rich.console import Console

from grace_benchmarks.record import write_result
from grace_retrieval import GraceEmbedder

PAIRS = 100
_SHOWN = (
    "The heart pumps blood through the body. With each beat it pushes blood into the arteries.",
    "We propose a neural network for weather prediction and show that it beats numerical models.",
)
# Prompts for documents and for queries; one for both where there is one.
PROMPTS: dict[str, tuple[str, ...] | None] = {
    "default": None,
    "sentence": ("Say in one short sentence what the text is about.",),
    "sentence by role": (
        "Say in one short sentence what the document is about. Name its subject, method and result.",
        "Say in one short sentence what the searcher wants to know.",
    ),
    "20 words": ("Summarize the text in at most 20 words.",),
    "keywords": ("List the keywords of the text, separated by commas. At most ten.",),
    "keywords by role": (
        "List the topics of the document as keywords, separated by commas. At most ten.",
        "List keywords that a document which answers the query contains, separated by commas. At most ten.",
    ),
    "title": ("Give the text a title.",),
    "question": (
        "Write the one question that the document answers.",
        "Write the question again, in other words.",
    ),
    "short thought": (
        "Inside <think></think>, name the subject of the text in a few words. Then say in one short sentence what it "
        "is about.",
    ),
    "examples": (
        "Name the subject of the document in one short sentence, as in these examples.\n\n"
        f"Document: {_SHOWN[0]}\nSubject: How the heart moves blood through the body.\n\n"
        f"Document: {_SHOWN[1]}\nSubject: Weather prediction with neural networks.",
        "Say in one short sentence what the searcher wants to know, as in these examples.\n\n"
        "Query: heart attack symptoms\nMeaning: What are the signs of a heart attack?\n\n"
        "Query: weather prediction neural network\nMeaning: How can neural networks predict the weather?",
    ),
    "examples of terms": (
        "Write the subject of the text and its main terms in one line, as in these examples.\n\n"
        f"Text: {_SHOWN[0]}\nSubject: heart, blood circulation, arteries\n\n"
        "Text: heart attack symptoms\nSubject: heart attack, signs, myocardial infarction",
    ),
}


def pairs(data: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Name, queries and documents of each set."""
    rows = pq.read_table(data / "arxiv/dev.parquet").to_pylist()[:PAIRS]
    yield "arxiv-dev", [row["title"] for row in rows], [row["abstract"] for row in rows]
    rows = pq.read_table(data / "pairs/medquad.parquet").to_pylist()
    random.Random(7).shuffle(rows)
    first = list({row["query"]: row for row in reversed(rows) if row["positive"]}.values())[::-1][:PAIRS]
    yield "medquad", [row["query"] for row in first], [row["positive"][:1200] for row in first]


def main(
    data: Annotated[Path, typer.Argument(help="Folder with arxiv/ and pairs/.")],
    model: Annotated[str, typer.Option(help="Model.")] = "SmolLM2-135M-Instruct",
    budget: Annotated[int, typer.Option(help="Most tokens of a rationale.")] = 64,
    sentences: Annotated[int, typer.Option(help="Most sentences of a rationale; 0 is any number.")] = 0,
    only: Annotated[str, typer.Option(help="Names of prompts; all if none are given.")] = "",
    cache: Annotated[str, typer.Option(help="Where rationales are kept.")] = "default",
) -> None:
    """Measure every prompt, print, and keep the rows."""
    embedder = GraceEmbedder(
        model, max_new_tokens=budget, max_sentences=sentences, max_seq_length=256, cache=cache, on_truncation="ignore"
    )
    names = only.split(",") if only else list(PROMPTS)
    if unknown := [name for name in names if name not in PROMPTS]:
        raise typer.BadParameter(f"{', '.join(unknown)}: give some of {', '.join(PROMPTS)}.")
    own = dict(embedder.prompts)
    rows: list[dict[str, Any]] = []
    for name in names:
        prompts = PROMPTS[name]
        embedder.prompts = dict(own) if prompts is None else {"document": prompts[0], "query": prompts[-1]}
        for collection, asked, texts in pairs(data):
            documents = embedder.encode_with_rationales(texts, "document")
            queries = embedder.encode_with_rationales(asked, "query")
            alone = embedder.encode_query(asked, rationale=False), embedder.encode_document(texts, rationale=False)
            row: dict[str, Any] = {
                "prompt": name,
                "collection": collection,
                "rationale": ndcg(queries.vectors, documents.vectors),
                "rationale, centred": ndcg(centred(queries.vectors), centred(documents.vectors)),
                "text": ndcg(*alone),
                "text, centred": ndcg(*map(centred, alone)),
                "crossed, centred": ndcg(centred(alone[0]), centred(documents.vectors)),
            }
            for role, found in (("documents", documents), ("queries", queries)):
                row[f"{role}_ended"] = float(np.mean([not written.truncated for written in found.rationales]))
                row[f"tokens_of_{role}"] = float(np.mean([len(written.token_ids) for written in found.rationales]))
            rows.append({key: value if isinstance(value, str) else round(value, 3) for key, value in row.items()})
            Console().print(rows[-1])
    file = f"prompts-{sentences}" if sentences else "prompts"
    write_result("prompts", rows, file=file, model=model, budget=budget, sentences=sentences, pairs=PAIRS)


def ndcg(queries: Any, documents: Any) -> float:
    """nDCG@10 where the one document of a query has its place."""
    scores = queries @ documents.T
    ranks = (scores > np.diag(scores)[:, None]).sum(axis=1)
    return float(np.where(ranks < 10, 1 / np.log2(ranks + 2), 0.0).mean())


def centred(vectors: Any) -> Any:
    """Without what all have in common. Shape: (texts, dim)."""
    moved = vectors - vectors.mean(axis=0)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


if __name__ == "__main__":
    typer.run(main)
