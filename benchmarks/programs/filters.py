"""What does a filter cost? Searches among one row in a hundred of 200,000, beside an older state, with equal results.

    PYTHONPATH=benchmarks python -m programs.filters --before ../before --folder scratch

Each side opens the same index in processes of its own, in turns: a first filtered search, then others with other
queries. CPU seconds, one thread. Ids and scores of all searches are compared; `none` is a search without a filter.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from grace_benchmarks.record import measure, write_result

WORDS = "wind river glass copper seed storm bridge lamp bread moon signal harbour".split()
KINDS = ("whole number", "order of numbers", "text", "two names", "function", "none")


def main(
    before: Annotated[Path, typer.Option(help="Checkout of an older state.")],
    folder: Annotated[Path, typer.Option(help="Where the index is kept.")] = Path("filters"),
    rows: Annotated[int, typer.Option(help="Documents.")] = 200_000,
    dimension: Annotated[int, typer.Option(help="Dimensions of their vectors.")] = 128,
    repeats: Annotated[int, typer.Option(help="Processes of each side and filter.")] = 3,
    searches: Annotated[int, typer.Option(help="Searches after the first one.")] = 10,
    kinds: Annotated[str, typer.Option(help="Filters, separated by commas.")] = ",".join(KINDS),
) -> None:
    """Build an index if it is not there, measure, print, and keep the rows."""
    from grace_retrieval.indexing import BuildOptions, FaissOptions, build_index

    if not (folder / "manifest.json").exists():
        build_index(_documents(rows, dimension), folder, options=BuildOptions(faiss=FaissOptions(factory="Flat")))
    sides = {"before": before.resolve(), "now": Path.cwd()}
    found: list[dict[str, Any]] = []
    for kind in kinds.split(","):
        taken: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
        for _ in range(repeats):
            for side, checkout in sides.items():
                taken[side].append(_child(checkout, folder, kind, searches))
        row: dict[str, Any] = {"filter": kind, "hits": taken["now"][0]["hits"]}
        row["equal"] = len({one["digest"] for runs in taken.values() for one in runs}) == 1
        for step in ("first", "later"):
            middle = {side: statistics.median(one[f"{step}_cpu"] for one in runs) for side, runs in taken.items()}
            row |= {f"{step}_cpu_{side}": round(cpu, 5) for side, cpu in middle.items()}
            row[f"{step}_ratio"] = round(middle["before"] / middle["now"], 1)
        row |= {f"peak_mb_{side}": max(one["peak_mb"] for one in runs) for side, runs in taken.items()}
        found.append(row)
        Console().print(row)
    write_result("filters", found, documents=rows, dimension=dimension, repeats=repeats, searches=searches)


def _documents(rows: int, dimension: int) -> Iterator[Any]:
    """Documents of short texts, metadata of several types, and random vectors."""
    from grace_retrieval.indexing import Document

    chance = np.random.default_rng(0)
    for number in range(rows):
        text = " ".join(WORDS[place] for place in chance.integers(0, 12, 30))
        vector = chance.standard_normal(dimension).astype(np.float32)
        metadata = {
            "n": number,
            "year": 1900 + int(chance.integers(0, 100)),
            "lang": ("en", "de", "fr")[number % 3],
            "venue": f"{WORDS[number % 12]} {number % 997}",
            "score": float(chance.random()),
        }
        yield Document(id=str(number), text=text, metadata=metadata, vector=vector)


def _child(checkout: Path, index: Path, kind: str, searches: int) -> dict[str, Any]:
    path = os.pathsep.join([str(checkout), str(checkout / "benchmarks")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    arguments = [str(Path(__file__).resolve()), "child", str(index.resolve()), kind, str(searches)]
    done = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def child(folder: Path, kind: str, searches: int) -> None:
    """Open an index, search it, and print what it took."""
    from grace_retrieval.indexing import GraceIndex
    from grace_retrieval.indexing import filters as kinds

    def high(metadata: dict[str, Any]) -> bool:
        return bool(metadata["score"] >= 0.99)

    filters: dict[str, Any] = {
        "whole number": {"year": 1950},
        # An older state has functions only for that.
        "order of numbers": kinds.Combination((kinds.Comparison("score", ">=", 0.99),))
        if hasattr(kinds, "Combination")
        else high,
        "text": {"venue": [f"{WORDS[n % 12]} {n}" for n in range(120)]},
        "two names": {"year": [1950, 1951, 1952], "lang": "de"},
        "function": lambda metadata: metadata["year"] == 1950,
        "none": None,
    }
    index = GraceIndex.open(folder)
    queries = np.random.default_rng(1).standard_normal((searches + 1, index.dimension), dtype=np.float32)
    digest, cpu, hits = hashlib.sha256(), [], []
    for query in queries:
        with measure() as timing:
            (result,) = index.search_vectors(query, filter=filters[kind])
        cpu.append(timing.cpu)
        hits.append(len(result.hits))
        digest.update(json.dumps([result.ids, result.scores.tolist()]).encode())
    about = {
        "first_cpu": cpu[0],
        "later_cpu": statistics.median(cpu[1:]),
        "hits": statistics.median(hits),
        "digest": digest.hexdigest(),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    typer.echo(json.dumps(about))


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        typer.run(main)
