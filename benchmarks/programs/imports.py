"""How long do `import grace_retrieval` and `grace --help` take, beside `import torch`?

PYTHONPATH=benchmarks python -m programs.imports
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import typer
from rich.console import Console

from grace_benchmarks.record import write_result

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import grace_retrieval": ["-c", "import grace_retrieval"],
    "grace --help": ["-m", "grace_retrieval", "--help"],
    "import torch": ["-c", "import torch"],
    "from grace_retrieval import GraceEmbedder": ["-c", "from grace_retrieval import GraceEmbedder"],
}


def main(repeats: int = 7) -> None:
    """Time each command in fresh processes, in turns."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(repeats + 1):  # the first round warms the disk cache
        for name, arguments in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            times[name].append(time.perf_counter() - start)
    rows = [
        {
            "what": name,
            "median_seconds": round(statistics.median(taken[1:]), 3),
            "min_seconds": round(min(taken[1:]), 3),
            "max_seconds": round(max(taken[1:]), 3),
        }
        for name, taken in times.items()
    ]
    write_result("imports", rows, repeats=repeats)
    for row in rows:
        Console().print(row)


if __name__ == "__main__":
    typer.run(main)
