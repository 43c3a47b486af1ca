"""How much faster is encoding a corpus again, when every rationale is in the cache?

    PYTHONPATH=benchmarks python -m programs.cache

Encodes short texts with grace-nano into a fresh SQLite cache, then again, and then by a second embedder that shares
nothing but the file (and first has to hash its weights), and counts the texts that the model saw.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from grace_benchmarks.record import measure, write_result
from grace_retrieval import GraceEmbedder
from grace_retrieval.threads import hold_torch

WORDS = "wind river glass copper seed storm bridge lamp bread moon signal harbour".split()


def build_texts(count: int) -> list[str]:
    """Short, different texts."""
    return [
        f"Note {i}: the {WORDS[i % 12]} beside the {WORDS[i // 12 % 12]} was measured {i} times before noon, because "
        f"the {WORDS[(5 * i + 3) % 12]} changes when the {WORDS[(7 * i + 1) % 12]} does."
        for i in range(count)
    ]


def main(
    texts: Annotated[int, typer.Option(help="Number of texts.")] = 512,
    model: Annotated[str, typer.Option(help="Model.")] = "grace-nano",
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 2,
) -> None:
    """Compare a first and a second encode."""
    hold_torch(threads)
    corpus = build_texts(texts)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rationales.sqlite"
        embedder = GraceEmbedder(model, cache=file)
        with measure() as first:
            cold = embedder.encode_document(corpus)
        calls = embedder.writer.engine.statistics()["texts"]
        with measure() as second:
            warm = embedder.encode_document(corpus)
        other = GraceEmbedder(model, cache=file)
        with measure() as fresh:
            shared = other.encode_document(corpus)
        row = {
            "texts": texts,
            "model": model,
            "first_seconds": round(first.wall, 3),
            "second_seconds": round(second.wall, 4),
            "ratio": round(first.wall / second.wall, 1),
            "texts_per_second_from_cache": round(texts / second.wall),
            "new_embedder_seconds": round(fresh.wall, 4),
            "new_embedder_ratio": round(first.wall / fresh.wall, 1),
            "model_calls_first": calls,
            "model_calls_second": embedder.writer.engine.statistics()["texts"] - calls,
            "model_calls_new_embedder": other.writer.engine.statistics()["texts"],
            "largest_difference": float(max(np.abs(cold - warm).max(), np.abs(cold - shared).max())),
        }
        for opened in (embedder.cache, other.cache):
            if opened is not None:
                opened.close()
    write_result("cache", [row], threads=threads)
    Console().print(row)


if __name__ == "__main__":
    typer.run(main)
