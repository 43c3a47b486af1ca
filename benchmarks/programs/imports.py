"""How long do imports take, beside those of the libraries that they need anyway?

    PYTHONPATH=benchmarks python -m programs.imports
    PYTHONPATH=benchmarks python -m programs.imports --before ../before   # a checkout of an older state, in turns
    PYTHONPATH=benchmarks python -m programs.imports --opened SmolLM2-135M-Instruct

The peer of an embedder is torch, transformers and the class of its model, without which nothing can be embedded. Fresh
processes, in turns, byte code written before; CPU seconds beside those of the clock, because other work disturbs them
less. The last rows say which libraries an embedder loads beyond its peer, and how long each takes by itself.
"""

from __future__ import annotations

import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from grace_benchmarks.record import write_result

CLASS = "import torch, transformers; transformers.LlamaForCausalLM"
EMBEDDER = "from grace_retrieval import GraceEmbedder"
PEER = "import torch, transformers, its class"
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import grace_retrieval": ["-c", "import grace_retrieval"],
    "grace --help": ["-m", "grace_retrieval", "--help"],
    "import torch": ["-c", "import torch"],
    PEER: ["-c", CLASS],
    EMBEDDER: ["-c", EMBEDDER],
}


def main(
    repeats: Annotated[int, typer.Option(help="Rounds that count; one before them writes byte code.")] = 5,
    before: Annotated[Path | None, typer.Option(help="Checkout of an older state, measured in turns.")] = None,
    opened: Annotated[str, typer.Option(help="Models that are opened, separated by commas.")] = "grace-nano",
) -> None:
    """Time each command in fresh processes, in turns."""
    commands = {name: (arguments, Path.cwd()) for name, arguments in COMMANDS.items()}
    if before is not None:
        commands[f"before: {EMBEDDER}"] = (["-c", EMBEDDER], before.resolve())
    for model in opened.split(","):
        commands[f"and opening {model}"] = (["-c", f"{EMBEDDER}; GraceEmbedder({model!r})"], Path.cwd())
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(repeats + 1):
        for name, (arguments, folder) in commands.items():
            taken[name].append(_run(arguments, folder))
    rows = [_row(name, times[1:]) for name, times in taken.items()]
    peer = next(row for row in rows if row["what"] == PEER)
    for row in rows:
        row["over_peer"] = round(row["median_seconds"] / peer["median_seconds"], 2)
        row["cpu_over_peer"] = round(row["median_cpu_seconds"] / peer["median_cpu_seconds"], 2)
    rows += _beyond(CLASS, EMBEDDER)
    write_result("imports", rows, repeats=repeats)
    for row in rows:
        Console().print(row)


def _run(arguments: list[str], folder: Path) -> tuple[float, float]:
    """Seconds of a fresh process: on the clock, and of CPU."""
    start, used = time.perf_counter(), _cpu_of_children()
    subprocess.run(
        [sys.executable, *arguments],
        check=True,
        env=_environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - start, _cpu_of_children() - used


def _environment(folder: Path) -> dict[str, str]:
    """A checkout in front of everything else, and byte code as an installed package has it."""
    paths = [str(folder), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _row(name: str, times: list[tuple[float, float]]) -> dict[str, Any]:
    clock, cpu = zip(*times, strict=True)
    return {
        "what": name,
        "median_seconds": round(statistics.median(clock), 3),
        "min_seconds": round(min(clock), 3),
        "max_seconds": round(max(clock), 3),
        "median_cpu_seconds": round(statistics.median(cpu), 3),
    }


def _beyond(peer: str, whole: str) -> list[dict[str, Any]]:
    """What one import loads and another does not, by library; by Python's own count of an import's own time."""
    known = _modules(peer)
    seconds: Counter[str] = Counter()
    for name, taken in _modules(whole).items():
        if name not in known:
            seconds[name.partition(".")[0]] += taken
    return [
        {"beyond_peer": library, "modules_seconds": round(taken / 1e6, 3)}
        for library, taken in seconds.most_common()
        if taken >= 10_000
    ]


def _modules(code: str) -> dict[str, int]:
    """Modules of an import, and the microseconds of each without what it imports itself."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code],
        check=True,
        env=_environment(Path.cwd()),
        capture_output=True,
        text=True,
    )
    found = re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s*(\S+)$", done.stderr, flags=re.MULTILINE)
    return {name: int(taken) for taken, name in found}


if __name__ == "__main__":
    typer.run(main)
