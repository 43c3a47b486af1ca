"""Does offline indexing keep its promises? Flat memory, kills that change nothing, and what it costs.

    PYTHONPATH=benchmarks python -m programs.indexing memory      # peak memory of 20,000 and 200,000 given vectors
    PYTHONPATH=benchmarks python -m programs.indexing kill        # 30 SIGKILLs over one build of real texts
    PYTHONPATH=benchmarks python -m programs.indexing overhead    # a build against the embedder alone
    PYTHONPATH=benchmarks python -m programs.indexing search      # a search against FAISS alone, 100 queries at once
    PYTHONPATH=benchmarks python -m programs.indexing ray         # two Ray workers against this process

Each writes benchmarks/results/indexing_<name>.json. Ratios compare sides that ran in turns, in one run.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from grace_benchmarks.record import measure, write_result
from grace_retrieval.indexing import (
    BuildOptions,
    Corpus,
    Document,
    FaissOptions,
    GraceIndex,
    IndexManifest,
    build_index,
)
from grace_retrieval.indexing.workspace import Journal

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

DataOption = Annotated[Path, typer.Option(help="Folder of the test collections.")]


def given(count: int, dimension: int, *, seed: int = 0) -> Iterator[Document]:
    """Documents of 600 characters with random vectors, made as they are asked for."""
    rng = np.random.default_rng(seed)
    words = "wind river glass copper seed storm bridge lamp bread moon signal harbour".split()
    for number in range(count):
        text = " ".join(words[place] for place in rng.integers(0, len(words), 100))
        vector = rng.standard_normal(dimension).astype(np.float32)
        yield Document(id=str(number), text=text, metadata={"n": number}, vector=vector)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {
        "median": round(statistics.median(values), 4),
        "lowest": round(min(values), 4),
        "highest": round(max(values), 4),
    }


def real_texts(data: Path, count: int) -> list[Document]:
    """The first documents of NFCorpus."""
    documents = Corpus([str(data / "retrieval" / "nfcorpus")]).documents()
    return [document for _, document in zip(range(count), documents, strict=False)]


def write_corpus(documents: Sequence[Document], path: Path) -> None:
    """JSON lines of documents."""
    lines = [json.dumps({"id": d.id, "title": d.title, "text": d.text, **d.metadata}) for d in documents]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@app.command()
def memory(
    dimension: Annotated[int, typer.Option(help="Dimensions of the vectors.")] = 256,
    repeats: Annotated[int, typer.Option(help="Builds of each size.")] = 3,
) -> None:
    """Peak memory of a build does not grow with the corpus."""
    sizes, rows = (20_000, 200_000), []
    for repeat in range(repeats):
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                child = [sys.executable, "-m", "programs.indexing", "child", folder, str(size), str(dimension)]
                done = subprocess.run(child, capture_output=True, text=True, check=True)
            rows.append({"repeat": repeat, "documents": size, "dimension": dimension, **json.loads(done.stdout)})
            Console().print(rows[-1])
    peaks = {
        size: statistics.median(row["peak_memory_mb"] for row in rows if row["documents"] == size) for size in sizes
    }
    summary = {"summary": "peak memory", **{str(size): peak for size, peak in peaks.items()}}
    summary["ratio"] = round(peaks[sizes[1]] / peaks[sizes[0]], 3)
    Console().print(summary)
    write_result("indexing", [summary, *rows], file="indexing_memory", factory="Flat")


@app.command(hidden=True)
def child(folder: Path, size: int, dimension: int) -> None:
    """Build in a process of its own, and print its peak memory."""
    started = time.perf_counter()
    manifest = build_index(
        given(size, dimension), folder / "index", options=BuildOptions(faiss=FaissOptions(factory="Flat"))
    ).manifest
    about = {
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "faiss_mb": round(manifest.faiss.bytes / 1e6, 1),
        "seconds": round(time.perf_counter() - started, 1),
    }
    typer.echo(json.dumps(about))


@app.command()
def kill(
    data: DataOption = Path("../shared/data"),
    documents: Annotated[int, typer.Option(help="Documents of NFCorpus.")] = 80,
    kills: Annotated[int, typer.Option(help="SIGKILLs.")] = 30,
    seed: Annotated[int, typer.Option(help="Seed of the moments.")] = 0,
) -> None:
    """Kill one build again and again; compare its index with one that was left alone.

    Moments are drawn from the time in which a build works, not from that in which Python starts. One kill in six waits
    until all shards are there, and strikes while FAISS is built and the index is put together, which is quick.
    """
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(real_texts(data, documents), folder / "in.jsonl")
        whole, killed = folder / "whole", folder / "killed"
        shards = -(-documents // _SHARD_ROWS)
        process, begun = _build(folder, whole), time.perf_counter()
        _wait(process, lambda: _holds_lock(process))
        working = time.perf_counter()
        _wait(process, lambda: _finished(whole) == shards)
        complete = time.perf_counter()
        _wait(process, lambda: (whole / "manifest.json").exists())
        ended = time.perf_counter()
        process.communicate()
        states: list[str] = []
        made: dict[str, int] = {}
        while len(states) < kills:
            process = _build(folder, killed)
            left, late = kills - len(states), kills // 6
            if left > late:
                _wait(process, lambda: _holds_lock(process))  # noqa: B023
                remaining = (complete - working) * (1 - _finished(killed) / shards)
                delay = remaining * chance.random() * min(0.5, 2 / (left - late + 1))
            else:
                _wait(process, lambda: _finished(killed) == shards)
                delay = 0.5 * (ended - complete) * chance.random()
            time.sleep(delay)
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGKILL)
            process.communicate()
            states.append(_state(killed))
            made = _shards(killed) | made
            Console().print(len(states), round(delay, 3), states[-1])
        output, errors = _build(folder, killed).communicate()
        report = json.loads(output) if output.strip() else {"error": errors[-500:]}
        row = {
            "documents": documents,
            "shards": shards,
            "kills": len(states),
            "states_at_kills": states,
            "uninterrupted_seconds": {
                "until_work": round(working - begun, 1),
                "shards": round(complete - working, 1),
                "index": round(ended - complete, 3),
            },
            "last_run": {key: report.get(key) for key in ("resumed", "generated", "from_cache", "seconds", "error")},
            "finished_shards_made_again": sum(_shards(killed)[name] != then for name, then in made.items()),
            **_compare(whole, killed),
        }
    Console().print({key: value for key, value in row.items() if key != "states_at_kills"})
    write_result("indexing", [row], file="indexing_kill", seed=seed, model="grace-nano")


_SHARD_ROWS = 4
"""Documents of a shard in the kill test: small, so that there are many ends of shards to be killed at."""


def _wait(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """Wait until something holds or a process has ended."""
    while process.poll() is None and not ready():
        time.sleep(0.003)


def _holds_lock(process: subprocess.Popen[str]) -> bool:
    """Whether a build has taken its lock, with which its work begins (Linux)."""
    locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    return any(line.split()[1] == "FLOCK" and line.split()[4] == str(process.pid) for line in locks)


def _shards(out: Path) -> dict[str, int]:
    """When the shards that count as finished were written."""
    if (out / "manifest.json").exists():
        names = [shard.name for shard in IndexManifest.read(out).shards]
    else:
        names = list(Journal(out / "build" / "journal.jsonl").read())
    places = [folder / name for name in names for folder in (out / "build", out / "shards")]
    return {path.name: path.stat().st_mtime_ns for path in places if path.exists()}


def _finished(out: Path) -> int:
    return len(_shards(out))


def _build(folder: Path, out: Path) -> subprocess.Popen[str]:
    command = ["index", "build", str(folder / "in.jsonl"), "--title-column", "title", "--out", str(out)]
    environment = {**os.environ, "GRACE_CACHE_DIR": str(folder / f"cache-{out.name}"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "grace_retrieval",
            *command,
            "--shard-rows",
            str(_SHARD_ROWS),
            "--device",
            "cpu",
            "--json",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def _state(out: Path) -> str:
    """What was on the disk at a kill."""
    if (out / "manifest.json").exists():
        return "index finished"
    planned = len(list((out / "build" / "input").glob("*.parquet")))
    half = len(list((out / "build").glob("*.tmp")))
    return f"{planned} shards planned, {_finished(out)} finished, {half} half written"


def _compare(one: Path, other: Path) -> dict[str, bool]:
    """Whether two indexes are the same."""
    import pyarrow.parquet as pq

    left, right = IndexManifest.read(one), IndexManifest.read(other)
    tables = [
        [pq.read_table(side / "shards" / shard.name, partitioning=None) for shard in manifest.shards]
        for side, manifest in ((one, left), (other, right))
    ]
    return {
        "same_rows": all(a.equals(b) for a, b in zip(*tables, strict=True)),
        "same_files": [shard.sha256 for shard in left.shards] == [shard.sha256 for shard in right.shards],
        "same_faiss_file": left.faiss.sha256 == right.faiss.sha256,
        "nothing_left_over": not (other / "build").exists(),
    }


@app.command()
def overhead(
    data: DataOption = Path("../shared/data"),
    documents: Annotated[int, typer.Option(help="Documents of NFCorpus.")] = 96,
    repeats: Annotated[int, typer.Option(help="Runs of each side, in turns.")] = 3,
) -> None:
    """A build, from file to finished index, against `encode_document` of the same texts in the same order."""
    import torch

    from grace_retrieval import GraceEmbedder

    torch.set_num_threads(1)
    texts = real_texts(data, documents)
    embedder = GraceEmbedder("grace-nano", cache=None, device="cpu", on_truncation="ignore")
    # A build embeds long texts first, which makes better batches; here that is no merit of the build.
    ordered = sorted((text.embedded_text for text in texts), key=len, reverse=True)
    embedder.encode_document(ordered[-4:])
    embedder.fingerprint("document")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(texts, folder / "in.jsonl")
        for repeat in range(repeats):
            out = folder / f"index-{repeat}"

            def build(out: Path = out) -> None:
                corpus = Corpus([str(folder / "in.jsonl")])
                build_index(corpus.documents(), out, embedder=embedder)

            def encode() -> None:
                embedder.encode_document(ordered, show_progress_bar=False)

            taken = _in_turns(repeat, {"build": build, "encode": encode})
            rows.append({"repeat": repeat, "documents": documents, **taken})
            Console().print(rows[-1])
    summary = {
        "summary": "build over encode",
        "cpu_ratio": spread([row["build_cpu"] / row["encode_cpu"] for row in rows]),
        "wall_ratio": spread([row["build_wall"] / row["encode_wall"] for row in rows]),
    }
    Console().print(summary)
    write_result("indexing", [summary, *rows], file="indexing_overhead", model="grace-nano", threads=1, cache=None)


def _in_turns(repeat: int, sides: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Time sides one after the other; which is first changes with the repeat."""
    names = list(sides) if repeat % 2 == 0 else list(sides)[::-1]
    taken: dict[str, float] = {}
    for name in names:
        with measure() as timing:
            sides[name]()
        taken |= {f"{name}_wall": round(timing.wall, 4), f"{name}_cpu": round(timing.cpu, 4)}
    return taken


@app.command()
def search(
    sizes: Annotated[str, typer.Option(help="Documents x dimensions, separated by commas.")] = (
        "20000x256,100000x256,100000x1024"
    ),
    factories: Annotated[str, typer.Option(help="FAISS factory strings, separated by blanks.")] = "Flat",
    queries: Annotated[int, typer.Option(help="Queries at once.")] = 100,
    k: Annotated[int, typer.Option(help="Documents for a query.")] = 10,
    repeats: Annotated[int, typer.Option(help="Runs of each side, in turns.")] = 15,
) -> None:
    """Search with ids, texts, metadata and rationales against FAISS alone, which gives numbers of vectors."""
    import faiss

    faiss.omp_set_num_threads(1)
    usual = faiss.cvar.distance_compute_blas_threshold
    rows = []
    for documents, dimension in (map(int, size.split("x")) for size in sizes.split(",")):
        for factory in factories.split():
            with tempfile.TemporaryDirectory() as name:
                options = BuildOptions(faiss=FaissOptions(factory=factory))
                build_index(given(documents, dimension), Path(name) / "index", options=options)
                index = GraceIndex.open(Path(name) / "index")
                for threshold in (usual, 20):
                    # FAISS multiplies matrices only above this size; its own loops, below it, are much slower.
                    faiss.cvar.distance_compute_blas_threshold = threshold
                    row = _search_row(index, factory, queries, k, repeats)
                    rows.append({"blas_threshold": threshold, **row})
                    Console().print(rows[-1])
    write_result("indexing", rows, file="indexing_search", threads=1, repeats=repeats)


def _search_row(index: GraceIndex, factory: str, queries: int, k: int, repeats: int) -> dict[str, Any]:
    import faiss

    from grace_retrieval.indexing.faiss_store import search_faiss

    rng = np.random.default_rng(1)
    # Other queries each time, so that no row is kept in memory because it was just found.
    batches = rng.standard_normal((repeats + 1, queries, index.dimension)).astype(np.float32)
    batches /= np.linalg.norm(batches, axis=2, keepdims=True)
    how = dict(index.manifest.faiss.search)
    raw = faiss.read_index(str(index.folder / index.manifest.faiss.name), faiss.IO_FLAG_MMAP_IFC)
    with measure() as cold:
        index.search_vectors(batches[-1], k=k)
    search_faiss(raw, batches[-1], k, search=how)
    taken = [
        _in_turns(
            repeat,
            {
                "search": partial(index.search_vectors, asked, k=k),
                "faiss": partial(search_faiss, raw, asked, k, search=how),
            },
        )
        for repeat, asked in enumerate(batches[:-1])
    ]
    return {
        "factory": factory,
        "documents": len(index),
        "dimension": index.dimension,
        "queries": queries,
        "k": k,
        "cpu_ratio": spread([row["search_cpu"] / row["faiss_cpu"] for row in taken]),
        "wall_ratio": spread([row["search_wall"] / row["faiss_wall"] for row in taken]),
        "faiss_cpu": spread([row["faiss_cpu"] for row in taken]),
        "search_cpu": spread([row["search_cpu"] for row in taken]),
        "faiss_wall": spread([row["faiss_wall"] for row in taken]),
        "search_wall": spread([row["search_wall"] for row in taken]),
        "first_search_wall": round(cold.wall, 4),
    }


@app.command()
def ray(
    data: DataOption = Path("../shared/data"),
    documents: Annotated[int, typer.Option(help="Documents of NFCorpus.", min=20)] = 120,
    workers: Annotated[int, typer.Option(help="Ray actors.")] = 2,
) -> None:
    """Two Ray workers against this process, and where the rest of the time goes."""
    import torch

    from grace_retrieval import GraceEmbedder
    from grace_retrieval.indexing.build import build_with
    from grace_retrieval.indexing.encoders import EmbedderEncoder
    from grace_retrieval.indexing.runners import RayRunner

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    texts = real_texts(data, documents)
    embedder = GraceEmbedder("grace-nano", cache=None, device="cpu", on_truncation="ignore")
    embedder.encode_document(["warm"])
    with tempfile.TemporaryDirectory() as name:
        folder, encoder = Path(name), EmbedderEncoder(embedder)
        options = BuildOptions(shard_rows=10)
        with measure() as local:
            build_with(encoder, texts, folder / "local", options=options)
        import ray as ray_library

        with measure() as starting:
            ray_library.init(include_dashboard=False, log_to_driver=False)
        arrivals: list[float] = []
        spent: dict[str, float] = {}
        engine = RayRunner(workers=workers, cpus=0.5, cache=None)
        started = time.perf_counter()

        def timed(*arguments: Any) -> Iterator[Any]:
            for shard in engine(*arguments):
                arrivals.append(time.perf_counter() - started)
                # Actors end with the last shard: what they had spent before is kept.
                spent.update({key: max(value, spent.get(key, 0.0)) for key, value in _cpu_of_children().items()})
                yield shard

        with measure() as distributed:
            build_with(encoder, texts, folder / "ray", options=options, runner=timed)
        ray_library.shutdown()
        shards = len(arrivals)
        # From the first shard on, all workers have their models.
        steady = (arrivals[-1] - arrivals[0]) / max(1, shards - 1)
        row = {
            "documents": documents,
            "workers": workers,
            "local_seconds": round(local.wall, 2),
            "ray_seconds": round(distributed.wall, 2),
            "ray_over_local": round(distributed.wall / local.wall, 3),
            "starting_cluster_seconds": round(starting.wall, 2),
            "until_first_shard_seconds": round(arrivals[0], 2),
            "seconds_a_shard_after_that": round(steady, 3),
            "local_seconds_a_shard": round(local.wall / shards, 3),
            "speedup_after_first_shard": round(local.wall / shards / steady, 2),
            "local_cpu_seconds": round(local.cpu, 1),
            "driver_cpu_seconds": round(distributed.cpu, 1),
            **spent,
            **_compare(folder / "local", folder / "ray"),
        }
    Console().print(row)
    write_result("indexing", [row], file="indexing_ray", model="grace-nano", cores=os.cpu_count())


def _cpu_of_children() -> dict[str, float]:
    """CPU seconds of Ray's processes on this machine: of the actors, from their start, and of all others."""
    import psutil

    actors = others = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it may end at any time
            times = process.cpu_times()
            if "ray::MapWorker" in " ".join(process.cmdline()):
                actors += times.user + times.system
            else:
                others += times.user + times.system
    return {"actors_cpu_seconds": round(actors, 1), "cluster_cpu_seconds": round(others, 1)}


if __name__ == "__main__":
    app()
