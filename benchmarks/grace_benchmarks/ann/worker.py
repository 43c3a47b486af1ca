"""One index, built and measured in a process of its own, so that its peak memory is its own.

    python -m grace_benchmarks.ann.worker

Started by `grace_benchmarks.ann.run`: a job (JSON) on stdin; on stdout one JSON line, with what building took and one
entry for every setting of search parameters.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from grace_benchmarks.ann.devices import import_faiss, on_device, parameter_space
from grace_benchmarks.ann.timing import Search, TimingOptions, time_searches
from grace_benchmarks.ann.truth import exact_neighbours
from grace_benchmarks.ann.vectors import Vectors
from grace_benchmarks.memory import peak_bytes, reset_peak, resident_bytes
from grace_retrieval.indexing.faiss_store import faiss_reason

__all__ = ["main", "measure_index"]

MEGABYTE = 1 << 20


def measure_index(job: dict[str, Any]) -> dict[str, Any]:
    """Build an index and measure every setting.

    Args:
        job: `vectors` (prepared folder), `work`, `factory`, `search` (list of parameter strings), `k`, `threads`,
            `build_threads`, `repeats`, `singles`, `train_size`, `seed`, `shard_rows`, `device`.

    Returns:
        `build` (columns of every row) and `searches` (columns or `failed`, one entry a setting).
    """
    faiss = import_faiss()
    vectors = Vectors.open(Path(job["vectors"]))
    faiss.omp_set_num_threads(job["build_threads"])
    before = resident_bytes()
    reset_peak()
    with tempfile.TemporaryDirectory(dir=job["work"], prefix="shards-") as folder:
        build, parts = _build(faiss, vectors, job, Path(folder))
        build["build_peak_mb"] = round((peak_bytes() - before) / MEGABYTE, 1)
        gc.collect()
        index: Any = parts[0]
        if job["shard_rows"]:
            index = faiss.IndexShards(vectors.dim, False, True)
            for part in parts:
                index.add_shard(part)
        index = on_device(index, job["device"])
        faiss.omp_set_num_threads(job["threads"])
        reset_peak()
        searches = _search(index, parts, vectors, job)
        build["search_peak_mb"] = round((peak_bytes() - before) / MEGABYTE, 1)
        truth = exact_neighbours(vectors, job["k"], work=Path(job["work"]))
        for entry in searches:
            if "failed" not in entry:
                entry["recall"] = round(truth.recall(np.array(entry.pop("ids")), vectors), 5)
    build["faiss"] = {"version": faiss.__version__, "options": faiss.get_compile_options().strip()}
    return {"build": build, "searches": searches}


def _build(faiss: Any, vectors: Vectors, job: dict[str, Any], folder: Path) -> tuple[dict[str, Any], list[Any]]:
    """Train once, fill every shard; shards are written, and opened from disk."""
    metric = faiss.METRIC_INNER_PRODUCT if vectors.metric == "ip" else faiss.METRIC_L2
    empty = faiss.index_factory(vectors.dim, job["factory"], metric)
    sample = _sample(vectors, job["train_size"], job["seed"]) if not empty.is_trained else None
    started, cpu = time.perf_counter(), time.process_time()
    if sample is not None:
        empty.train(sample)
    trained = time.perf_counter()
    del sample
    full = job["shard_rows"] or vectors.n
    parts: list[Any] = []
    index, add, size, filled = _copy(faiss, empty, job), 0.0, 0, 0
    for block in vectors.blocks():
        while len(block):
            here, block = block[: full - filled], block[full - filled :]
            started_add = time.perf_counter()
            index.add(here)
            add += time.perf_counter() - started_add
            filled += len(here)
            if filled == full:
                size, filled = size + _close(faiss, index, parts, job, folder), 0
                index = _copy(faiss, empty, job)
    if filled:
        size += _close(faiss, index, parts, job, folder)
    return {
        "train_size": min(job["train_size"], vectors.n) if trained - started > 1e-4 else 0,
        "train_seconds": round(trained - started, 3),
        "add_seconds": round(add, 3),
        "build_cpu_seconds": round(time.process_time() - cpu, 3),
        "index_bytes": size,
        "bytes_per_vector": round(size / vectors.n, 1),
    }, parts


def _copy(faiss: Any, empty: Any, job: dict[str, Any]) -> Any:
    return faiss.clone_index(empty) if job["shard_rows"] else empty


def _close(faiss: Any, index: Any, parts: list[Any], job: dict[str, Any], folder: Path) -> int:
    """Add a full shard to `parts`, from disk if there are several. Returns its size as a file."""
    if job["shard_rows"]:
        path = str(folder / f"shard-{len(parts):05d}.faiss")
        faiss.write_index(index, path)
        # Inverted lists and plain codes are mapped by different flags, which do not go together.
        flag = faiss.IO_FLAG_MMAP if "IVF" in job["factory"] else faiss.IO_FLAG_MMAP_IFC
        parts.append(faiss.read_index(path, flag))
        return os.path.getsize(path)
    parts.append(index)
    size = 0

    def count(data: bytes) -> int:
        nonlocal size
        size += len(data)
        return len(data)

    faiss.write_index(index, faiss.PyCallbackIOWriter(count))
    return size


def _sample(vectors: Vectors, size: int, seed: int) -> Any:
    """Rows to train with. Shape: (min(size, n), dim)."""
    chosen = np.sort(np.random.default_rng(seed).choice(vectors.n, min(size, vectors.n), replace=False))
    taken, start = [], 0
    for block in vectors.blocks():
        here = chosen[(chosen >= start) & (chosen < start + len(block))] - start
        taken.append(block[here])
        start += len(block)
    return np.concatenate(taken)


def _search(index: Any, parts: list[Any], vectors: Vectors, job: dict[str, Any]) -> list[dict[str, Any]]:
    """Times and found ids of every setting that FAISS accepts."""
    queries, k = vectors.query_vectors(), job["k"]
    space = parameter_space(job["device"])
    targets = parts if job["shard_rows"] else [index]

    def setting(parameters: str) -> Callable[[], Search]:
        def make() -> Search:
            for target in targets:
                if parameters:
                    space.set_index_parameters(target, parameters)
            return lambda rows: index.search(rows, k)

        return make

    entries: list[dict[str, Any]] = [{"search": parameters} for parameters in job["search"]]
    good = []
    for entry in entries:
        make = setting(entry["search"])
        try:
            _, ids = make()(queries)
        except RuntimeError as error:  # what FAISS throws
            entry["failed"] = faiss_reason(error)
            continue
        entry["ids"] = ids.tolist()
        good.append((entry, make))
    options = TimingOptions(
        repeats=job["repeats"], singles=job["singles"], min_seconds=job.get("min_seconds", TimingOptions.min_seconds)
    )
    for (entry, _), times in zip(good, time_searches([make for _, make in good], queries, options), strict=True):
        entry |= times.columns(len(queries))
    return entries


def main() -> None:
    """Read a job, measure, report."""
    # FAISS and BLAS may print: only the report goes where the parent reads.
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        result = measure_index(json.load(sys.stdin))
    except (RuntimeError, MemoryError) as error:
        result = {"failed": faiss_reason(error)}
    report.write(json.dumps(result) + "\n")
    report.flush()


if __name__ == "__main__":
    main()
