"""What grows faster than its work? Building from given vectors, opening, searching and verifying, at growing sizes.

    PYTHONPATH=benchmarks python -m programs.growth --folder scratch
    PYTHONPATH=benchmarks python -m programs.growth --folder scratch --before ../before   # an older state, too

Each step is a process of its own, as `grace` runs it, with one thread. A slope is the exponent between a size and the
one before: 1 is work in proportion to the rows. Documents, vectors and what was measured stay in the folder, so a run
that was stopped goes on. FAISS's index is Flat throughout, because another kind at another size would be other work.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from grace_benchmarks.record import Timing, measure, write_result

WORDS = "wind river glass copper seed storm bridge lamp bread moon signal harbour".split()
QUERIES = 50
FILTERED = {"year": 1950}
"""One row in a hundred."""


def main(
    folder: Annotated[Path, typer.Option(help="Where documents and indexes are kept.")] = Path("growth"),
    sizes: Annotated[str, typer.Option(help="Numbers of rows, separated by commas.")] = "10000,100000,1000000",
    dimension: Annotated[int, typer.Option(help="Dimensions of the vectors.")] = 64,
    before: Annotated[Path | None, typer.Option(help="Checkout of an older state.")] = None,
) -> None:
    """Measure, print, and keep the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    sides = {"now": Path.cwd(), **({} if before is None else {"before": before.resolve()})}
    rows: list[dict[str, Any]] = []
    for size in map(int, sizes.split(",")):
        _write(folder / str(size), size, dimension)
        for side, checkout in sides.items():
            rows += [
                {"side": side, "rows": size, "step": step, **taken}
                for step, taken in _steps(folder / str(size), checkout, folder / f"{side}-{size}.json").items()
            ]
            _with_slopes(rows)
            for row in rows:
                if (row["side"], row["rows"]) == (side, size):
                    Console().print(row)
    write_result("growth", rows, file="growth_steps", dimension=dimension, queries=QUERIES, factory="Flat")


def _write(folder: Path, size: int, dimension: int) -> None:
    """Documents with metadata, and random vectors; the same for a size every time."""
    if (folder / "vectors.npy").exists():
        return
    folder.mkdir(exist_ok=True)
    chance = np.random.default_rng(size)
    with open(folder / "corpus.jsonl", "w", encoding="utf-8") as stream:
        for number in range(size):
            words = " ".join(WORDS[place] for place in chance.integers(0, 12, 20))
            about = {"id": f"d{number}", "text": words, "year": 1900 + number % 100, "group": f"group {number % 7}"}
            stream.write(json.dumps(about) + "\n")
    vectors = np.lib.format.open_memmap(folder / "half.npy", mode="w+", dtype=np.float32, shape=(size, dimension))
    for start in range(0, size, 65_536):
        some = chance.standard_normal((min(65_536, size - start), dimension), dtype=np.float32)
        vectors[start : start + len(some)] = some / np.linalg.norm(some, axis=1, keepdims=True)
    vectors.flush()
    (folder / "half.npy").rename(folder / "vectors.npy")


def _steps(folder: Path, checkout: Path, kept: Path) -> dict[str, dict[str, Any]]:
    """Time and memory of every step; from the folder if they were measured before."""
    if kept.exists():
        found: dict[str, dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    index = folder / f"index-{kept.stem.partition('-')[0]}"
    shutil.rmtree(index, ignore_errors=True)
    corpus, vectors = str(folder / "corpus.jsonl"), str(folder / "vectors.npy")
    built = ["-m", "grace_retrieval", "index", "build", corpus, "--vectors", vectors, "--out", str(index)]
    found = {
        "build": _run([*built, "--factory", "Flat", "--quiet"], checkout),
        "verify": _run(["-m", "grace_retrieval", "index", "verify", str(index)], checkout),
    }
    searched = _run([str(Path(__file__).resolve()), "child", str(index)], checkout)
    peak = searched["peak_mb"]
    found |= {step: {**taken, "peak_mb": peak} for step, taken in json.loads(searched["output"]).items()}
    for taken in found.values():
        taken.pop("output", None)
    kept.write_text(json.dumps(found), encoding="utf-8")
    shutil.rmtree(index)
    return found


def _run(arguments: list[str], checkout: Path) -> dict[str, Any]:
    """Seconds and peak memory of a process."""
    path = os.pathsep.join([str(checkout), str(checkout / "benchmarks")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, env=environment)
    output = "" if process.stdout is None else process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}.")
    return {
        "seconds": round(time.perf_counter() - started, 3),
        "cpu": round(used.ru_utime + used.ru_stime, 3),
        "peak_mb": used.ru_maxrss // 1024,
        "output": output,
    }


def child(index: Path) -> None:
    """Open an index, search it, and print what each step took."""
    from grace_retrieval.indexing import GraceIndex

    timings: dict[str, Timing] = {}
    with measure() as timings["open"]:
        opened = GraceIndex.open(index)
    queries = np.random.default_rng(0).standard_normal((QUERIES, opened.dimension), dtype=np.float32)
    found: dict[str, dict[str, float]] = {}
    for step, filter in (("search", None), ("filtered search", FILTERED)):
        taken: list[Timing] = []
        for query in queries if filter is None else queries[: QUERIES // 8]:
            with measure() as timing:
                opened.search_vectors(query, filter=filter)
            taken.append(timing)
        timings[f"first {step}"] = taken[0]
        found[step] = {
            "seconds": round(statistics.median(timing.wall for timing in taken[1:]), 5),
            "cpu": round(statistics.median(timing.cpu for timing in taken[1:]), 5),
        }
    for step, timing in timings.items():
        found[step] = {"seconds": round(timing.wall, 5), "cpu": round(timing.cpu, 5)}
    typer.echo(json.dumps(found))


def _with_slopes(rows: list[dict[str, Any]]) -> None:
    """The exponent of each figure between a size and the one before."""
    for row in rows:
        smaller = [
            other for other in rows if (other["side"], other["step"]) == (row["side"], row["step"]) and other is not row
        ]
        smaller = [other for other in smaller if other["rows"] < row["rows"]]
        if smaller:
            other = max(smaller, key=lambda each: int(each["rows"]))
            ratio = math.log(row["rows"] / other["rows"])
            for name in ("cpu", "peak_mb"):
                row[f"{name}_slope"] = round(math.log(row[name] / other[name]) / ratio, 2)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(Path(sys.argv[2]))
    else:
        typer.run(main)
