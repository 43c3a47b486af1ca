"""What does the harness cost over calling FAISS by hand?

    python -m grace_benchmarks.ann.overhead

Two comparisons, in turns, over one Flat and one IVF index: queries per second as the harness times them against a bare
loop around `index.search`; and the CPU time of a whole run of the harness (a process of its own, vectors from disk,
size, recall) against a script that builds the same index and searches as often.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
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
from grace_benchmarks.record import write_result

INDEXES = (("Flat", ""), ("IVF512,SQ8", "nprobe=16"))

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
    n: Annotated[int, typer.Option(help="Vectors.")] = 100_000,
    dim: Annotated[int, typer.Option(help="Dimensions.")] = 256,
    repeats: Annotated[int, typer.Option(help="Rounds of each, in turns.")] = 7,
    out: Annotated[str, typer.Option(help="Name of the result file.")] = "overhead",
) -> None:
    """Compare the harness with FAISS by hand."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        vectors = prepare(GeneratedVectors(n=n, dim=dim, queries=1000), work=work)
        exact_neighbours(vectors, 10, work=work)
        for factory, search in INDEXES:
            rows += [_timed(vectors, factory, search, repeats), _whole(vectors, work, factory, search, repeats)]
    write_result("ann.overhead", rows, file=out, n=n, dim=dim, repeats=repeats, threads=1)
    for row in rows:
        Console().print(row)


def _timed(vectors: Vectors, factory: str, search: str, repeats: int) -> dict[str, Any]:
    """Queries per second as the harness times them, over those of a bare loop."""
    faiss = import_faiss()
    faiss.omp_set_num_threads(1)
    base, queries = np.concatenate(list(vectors.blocks())), vectors.query_vectors()
    index = faiss.index_factory(vectors.dim, factory, faiss.METRIC_L2)
    index.train(base)
    index.add(base)
    if search:
        parameter_space("cpu").set_index_parameters(index, search)
    singles = queries[:300]

    def by_hand() -> tuple[float, float]:
        started = time.perf_counter()
        index.search(queries, 10)
        middle = time.perf_counter()
        for place in range(len(singles)):
            index.search(singles[place : place + 1], 10)
        return middle - started, time.perf_counter() - middle

    def by_harness() -> tuple[float, float]:
        def run(rows: Any) -> Any:
            return index.search(rows, 10)

        return time_batch(run, queries, 1)[0], float(time_singles(run, singles).sum())

    by_hand(), by_harness()
    pairs = [(by_hand(), by_harness()) for _ in range(repeats)]
    return {
        "what": "timed searches",
        "factory": factory,
        "batch_overhead": _overhead([(hand[0], ours[0]) for hand, ours in pairs]),
        "single_overhead": _overhead([(hand[1], ours[1]) for hand, ours in pairs]),
    }


def _whole(vectors: Vectors, work: Path, factory: str, search: str, repeats: int) -> dict[str, Any]:
    """CPU seconds of a whole run, over those of the script."""
    rounds, singles = 5, 200
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
    for _ in range(max(3, repeats // 2)):
        hand = _cpu([sys.executable, "-c", BY_HAND], script)
        pairs.append((hand, _cpu([sys.executable, "-m", "grace_benchmarks.ann.worker"], harness)))
    return {"what": "whole run (CPU)", "factory": factory, "overhead": _overhead(pairs), "by_hand_seconds": pairs[0][0]}


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
