"""Measures every index of a plan, each in a process of its own; what is in the result file already is not repeated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from grace_benchmarks.ann.devices import devices, import_faiss
from grace_benchmarks.ann.plan import AnnOptions, IndexSpec
from grace_benchmarks.ann.truth import exact_neighbours
from grace_benchmarks.ann.vectors import Vectors
from grace_benchmarks.record import Row, RowFile, row_key
from grace_retrieval.indexing.recommend import fill_template

__all__ = ["run_ann"]


def run_ann(
    vectors: Vectors,
    indexes: Sequence[IndexSpec],
    options: AnnOptions,
    *,
    out: RowFile,
    work: Path,
    say: Callable[[Row], None] = lambda row: None,
) -> int:
    """Measure indexes over one matrix.

    Args:
        vectors: What is indexed.
        indexes: What to measure; GPU indexes are left out where no GPU is visible.
        options: How.
        out: Where rows go. A row that is there is not measured again.
        work: Folder of ground truth and of indexes on disk.
        say: Called with every new row.

    Returns:
        How many rows were there already.

    Raises:
        InputError: If k is above the number of vectors.
        MissingExtraError: If no FAISS is installed.
    """
    faiss = import_faiss()
    faiss.omp_set_num_threads(max(options.threads, options.build_threads))
    exact_neighbours(vectors, options.k, work=work)
    here, finished = devices(), 0
    for spec in indexes:
        if not spec.min_n <= vectors.n <= spec.max_n or spec.device not in here:
            continue
        factory = fill_template(spec.factory, vectors.n, vectors.dim)
        bases = [_base(vectors, spec, factory, search, options) for search in spec.search]
        missing = [base for base in bases if base["key"] not in out]
        finished += len(bases) - len(missing)
        if not missing:
            continue
        job = {
            "vectors": str(vectors.folder),
            "work": str(work),
            "search": [base["search"] for base in missing],
            **{name: missing[0][name] for name in ("factory", "shard_rows", "device", *_OPTIONS)},
            "train_size": max(options.train_size, _needed(factory)),
        }
        result = _run_worker(job)
        for place, base in enumerate(missing):
            found = {"failed": result["failed"]} if "failed" in result else result["searches"][place]
            state = "failed" if "failed" in found else "ok"
            say(out.append({**base, "status": state, **result.get("build", {}), **found}))
    return finished


_METRICS = {"cosine": "L2 of unit vectors", "l2": "L2", "ip": "inner product"}
_OPTIONS = ("k", "threads", "build_threads", "repeats", "singles", "seed")


def _base(vectors: Vectors, spec: IndexSpec, factory: str, search: str, options: AnnOptions) -> Row:
    """What decides a row, and its key."""
    identity: Row = {
        "kind": "ann",
        "template": spec.factory,
        "factory": factory,
        "search": search,
        "metric": _METRICS[vectors.metric],
        "shard_rows": spec.shard_rows,
        "device": spec.device,
        "run": options.run,
        **{name: getattr(options, name) for name in (*_OPTIONS, "train_size")},
    }
    return {"key": row_key({**identity, "digest": vectors.digest}), **identity, "data": vectors.describe()}


def _needed(factory: str) -> int:
    """Vectors that k-means wants for the lists of an inverted file: 39 a list."""
    lists = [int(part[3:].split("_")[0]) for part in factory.split(",") if part[:3] == "IVF" and part[3:4].isdigit()]
    return 39 * max(lists, default=0)


def _run_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Measure in a child process; a child that dies is a failure with its reason, not the end of the run."""
    threads = str(max(job["threads"], job["build_threads"]))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-m", "grace_benchmarks.ann.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as child:
        try:
            report, errors = child.communicate(json.dumps(job))
        except BaseException:  # Ctrl-C: the child must not go on alone
            child.kill()
            raise
    if child.returncode == 0 and report:
        result: dict[str, Any] = json.loads(report)
        return result
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        return {"failed": f"the process that built it was ended by {name} (out of memory, if nobody did it)"}
    lines = [line for line in errors.splitlines() if line.strip()]
    return {"failed": lines[-1] if lines else f"exit status {child.returncode}"}
