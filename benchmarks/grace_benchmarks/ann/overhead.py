"""What does the harness cost over calling FAISS by hand?

    python -m grace_benchmarks.ann.overhead

Two comparisons, in turns, over one Flat and one IVF index. "timed searches": the time that the harness reports for
queries, and the CPU time it takes to find it, against a bare loop around `index.search`. "whole run": the CPU time of
a process that measures one index (vectors from disk, size, memory, recall) against a script that builds the same index
and searches as often. Vectors and exact neighbours, which a suite makes once a matrix, are ready in both.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from grace_benchmarks.ann.devices import import_faiss, parameter_space
from grace_benchmarks.ann.generate import GeneratedVectors
from grace_benchmarks.ann.timing import time_batch, time_singles
from grace_benchmarks.ann.truth import exact_neighbours
from grace_benchmarks.ann.vectors import Vectors, prepare
from grace_benchmarks.record import measure, write_result

# Factory, search parameters, and queries that are searched one at a time: about as many seconds for each.
INDEXES = (("Flat", "", 100), ("IVF512,SQ8", "nprobe=16", 1000))

BY_HAND = """
import json, sys
import faiss, numpy as np
job = json.load(sys.stdin)
faiss.omp_set_num_threads(1)
base = np.concatenate([np.load(file) for file in job["blocks"]])
queries = np.load(job["queries"])
index = faiss.index_factory(base.shape[1], job["factory"], faiss.METRIC_L2)
index.train(base[:job["train_size"]])
index.add(base)
if job["search"]:
    faiss.ParameterSpace().set_index_parameters(index, job["search"])
for _ in range(job["batches"]):
    index.search(queries, 10)
for _ in range(job["rounds"]):
    for place in range(job["singles"]):
        index.search(queries[place:place + 1], 10)
"""


def main(
    n: Annotated[int, typer.Option(help="Vectors.")] = 50_000,
    dim: Annotated[int, typer.Option(help="Dimensions.")] = 256,
    repeats: Annotated[int, typer.Option(help="Rounds of each, in turns.")] = 9,
    out: Annotated[str, typer.Option(help="Name of the result file.")] = "overhead",
) -> None:
    """Compare the harness with FAISS by hand."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        vectors = prepare(GeneratedVectors(n=n, dim=dim, queries=1000), work=work)
        exact_neighbours(vectors, 10, work=work)
        for factory, search, singles in INDEXES:
            rows.append(_timed(vectors, factory, search, singles, repeats))
            rows.append(_whole(vectors, work, factory, search, singles, repeats))
    write_result("ann.overhead", rows, file=out, n=n, dim=dim, repeats=repeats, threads=1)
    for row in rows:
        Console().print(row)


def _timed(vectors: Vectors, factory: str, search: str, singles: int, repeats: int) -> dict[str, Any]:
    """Queries per second as the harness times them, over those of a bare loop."""
    faiss = import_faiss()
    faiss.omp_set_num_threads(1)
    base, queries = np.concatenate(list(vectors.blocks())), vectors.query_vectors()
    index = faiss.index_factory(vectors.dim, factory, faiss.METRIC_L2)
    index.train(base)
    index.add(base)
    if search:
        parameter_space("cpu").set_index_parameters(index, search)
    alone = queries[:singles]

    def run(rows: Any) -> Any:
        return index.search(rows, 10)

    def batch_by_hand() -> float:
        started = time.perf_counter()
        index.search(queries, 10)
        return time.perf_counter() - started

    def singles_by_hand() -> float:
        started = time.perf_counter()
        for place in range(len(alone)):
            index.search(alone[place : place + 1], 10)
        return time.perf_counter() - started

    return {
        "what": "timed searches",
        "factory": factory,
        **_compared("batch", batch_by_hand, lambda: time_batch(run, queries, 1)[0], repeats),
        **_compared("single", singles_by_hand, lambda: float(time_singles(run, alone).sum()), repeats),
    }


def _compared(name: str, hand: Callable[[], float], ours: Callable[[], float], repeats: int) -> dict[str, Any]:
    """Two ways to time the same searches, in turns: what they report, and the CPU time of the calls."""
    pairs = []
    for turn in range(repeats + 1):  # the first is the warm-up
        order = (hand, ours) if turn % 2 else (ours, hand)
        taken = {}
        for way in order:
            with measure() as timing:
                reported = way()
            taken[way] = (reported, timing.cpu)
        pairs.append((taken[hand], taken[ours]))
    return {
        f"{name}_overhead": _overhead([(a[0], b[0]) for a, b in pairs[1:]]),
        f"{name}_overhead_cpu": _overhead([(a[1], b[1]) for a, b in pairs[1:]]),
    }


def _whole(vectors: Vectors, work: Path, factory: str, search: str, singles: int, repeats: int) -> dict[str, Any]:
    """CPU seconds of a whole run, over those of the script."""
    rounds = 5
    harness = {
        "vectors": str(vectors.folder),
        "work": str(work),
        "factory": factory,
        "search": [search],
        "k": 10,
        "threads": 1,
        "build_threads": 1,
        "repeats": rounds,
        "singles": singles,
        "min_seconds": 0.0,  # every batch once a round, as in the script
        "train_size": 20_000,
        "seed": 0,
        "shard_rows": 0,
        "device": "cpu",
    }
    # The searches that the harness makes: for the recall, warm-up, and the rounds.
    script = {
        "blocks": [str(file) for file in sorted(vectors.folder.glob("block-*.npy"))],
        "queries": str(vectors.folder / "queries.npy"),
        "factory": factory,
        "search": search,
        "train_size": 20_000,
        "batches": rounds + 2,
        "rounds": rounds,
        "singles": singles,
    }
    pairs = []
    for _ in range(max(3, repeats // 3)):
        hand = _cpu([sys.executable, "-c", BY_HAND], script)
        pairs.append((hand, _cpu([sys.executable, "-m", "grace_benchmarks.ann.worker"], harness)))
    return {
        "what": "whole run",
        "factory": factory,
        "overhead_cpu": _overhead(pairs),
        "by_hand_cpu_seconds": [hand for hand, _ in pairs],
        "harness_cpu_seconds": [ours for _, ours in pairs],
    }


def _cpu(command: list[str], job: dict[str, Any]) -> float:
    """CPU seconds of a child process."""
    before = os.times()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run(command, input=json.dumps(job), text=True, check=True, capture_output=True, env=environment)
    after = os.times()
    return round(after.children_user + after.children_system - before.children_user - before.children_system, 3)


def _overhead(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """Share by which the second of each pair is above the first: median, least and most."""
    shares = sorted(ours / hand - 1 for hand, ours in pairs)
    return {
        "median": round(statistics.median(shares), 4),
        "min": round(shares[0], 4),
        "max": round(shares[-1], 4),
    }


if __name__ == "__main__":
    typer.run(main)
