"""Two processes side by side on the cores of one machine: how much longer than one after the other?

    PYTHONPATH=benchmarks python -m programs.threads
    PYTHONPATH=benchmarks python -m programs.threads --before ../before   # a checkout of an older state, too

OpenMP's threads wait for each other after every product of matrices. By default they wait busily, for milliseconds: two
processes then take the cores from each other's threads, whose peers wait meanwhile. Each setting is measured in turns:
one process alone, another alone, and both at once, all with models loaded and started at one moment. What else runs on
the machine is part of the figures; `load` says how much it was.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from grace_benchmarks.record import write_result

WORDS = "wind river glass copper seed storm bridge lamp bread moon signal harbour".split()
SETTINGS: dict[str, dict[str, str]] = {
    "as a library": {},
    "as the command line sets it": {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
_OURS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "GRACE_THREADS")


def main(
    model: Annotated[str, typer.Option(help="Model.")] = "grace-nano",
    texts: Annotated[int, typer.Option(help="Texts of a process.")] = 32,
    tokens: Annotated[int, typer.Option(help="Most tokens of a rationale.")] = 16,
    repeats: Annotated[int, typer.Option(help="Rounds, in turns.")] = 3,
    before: Annotated[Path | None, typer.Option(help="Checkout of an older state.")] = None,
    settings: Annotated[
        str, typer.Option(help="Which settings, by their place from 0, separated by commas.")
    ] = "0,1,2,3",
) -> None:
    """Measure, print, and keep the rows."""
    chosen = [list(SETTINGS)[int(place)] for place in settings.split(",")]
    sides = {name: (SETTINGS[name], Path.cwd()) for name in chosen}
    if before is not None:
        sides = {"before": ({}, before.resolve()), **sides}
    taken: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, (variables, folder) in sides.items():
            arguments = [model, str(texts), str(tokens)]
            alone = [_together(1, arguments, variables, folder)[0] for _ in range(2)]
            both = _together(2, arguments, variables, folder)
            row = {
                "alone": [round(run["seconds"], 3) for run in alone],
                "side_by_side": [round(run["seconds"], 3) for run in both],
                "cpu_alone": [round(run["cpu"], 3) for run in alone],
                "cpu_side_by_side": [round(run["cpu"], 3) for run in both],
                "threads": both[0]["threads"],
                "load": round(os.getloadavg()[0], 1),
            }
            row["ratio"] = round(max(row["side_by_side"]) / sum(row["alone"]), 3)
            taken[name].append(row)
            Console().print({"setting": name, **row})
    rows = [
        {"setting": name, "ratio": statistics.median(row["ratio"] for row in rounds), "rounds": rounds}
        for name, rounds in taken.items()
    ]
    write_result(
        "threads",
        rows,
        file=f"threads-{Path(model).name}",
        model=model,
        texts=texts,
        tokens=tokens,
        cores=os.cpu_count(),
    )
    for row in rows:
        Console().print(f"{row['setting']}: side by side {row['ratio']:.2f} of one after the other")


def child(model: str, texts: int, tokens: int) -> None:
    """Load, say so, wait for a line, and embed."""
    import torch

    from grace_retrieval import GraceEmbedder

    embedder = GraceEmbedder(model, cache=None, max_new_tokens=tokens, device="cpu", on_truncation="ignore")
    embedder.encode(["warm"], show_progress_bar=False)
    corpus = [" ".join(WORDS[(7 * n + 5 * word) % 12] for word in range(20 + n % 60)) for n in range(texts)]
    typer.echo("ready")
    sys.stdin.readline()
    started, used = time.perf_counter(), time.process_time()
    embedder.encode(corpus, show_progress_bar=False)
    about = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - used}
    typer.echo(json.dumps({**about, "threads": torch.get_num_threads()}))


def _together(count: int, arguments: list[str], variables: Mapping[str, str], folder: Path) -> list[dict[str, Any]]:
    """Run children that begin to embed at one moment."""
    environment = {name: value for name, value in os.environ.items() if name not in _OURS}
    path = os.pathsep.join([str(folder), str(folder / "benchmarks")])
    children = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "child", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**environment, **variables, "PYTHONPATH": path},
        )
        for _ in range(count)
    ]
    for process in children:
        if process.stdout is None or process.stdout.readline().strip() != "ready":
            raise RuntimeError("A child ended before it was ready.")
    for process in children:
        if process.stdin is not None:
            process.stdin.write("\n")
            process.stdin.flush()
    return [json.loads(process.communicate()[0]) for process in children]


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        typer.run(main)
