"""What a result file holds beside its rows: where, with what, and by which command it was made."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "Timing", "measure", "write_result"]

RESULTS = Path(__file__).resolve().parents[1] / "results"

_PACKAGES = ("grace-retrieval", "torch", "transformers", "sentence-transformers", "numpy")


@dataclass
class Timing:
    """Seconds of a block; filled in when it ends.

    Args:
        wall: Time on the clock.
        cpu: Time on all cores, which other work on the machine disturbs less.
    """

    wall: float = 0.0
    cpu: float = 0.0


@contextmanager
def measure() -> Iterator[Timing]:
    """Time a block."""
    timing, wall, cpu = Timing(), time.perf_counter(), time.process_time()
    yield timing
    timing.wall, timing.cpu = time.perf_counter() - wall, time.process_time() - cpu


def write_result(name: str, rows: Sequence[Mapping[str, Any]], *, file: str | None = None, **settings: Any) -> Path:
    """Write a file of `benchmarks/results`.

    Args:
        name: Module of this package that measured.
        rows: What was measured.
        file: File name without ending; None is `name`.
        **settings: Seeds, sizes and other choices.

    Returns:
        The file.
    """
    document = {
        "command": f"python -m grace_benchmarks.{name} {' '.join(sys.argv[1:])}".strip(),
        "environment": environment(),
        "settings": settings,
        "rows": list(rows),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{file or name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path


def environment() -> dict[str, Any]:
    """Commit, versions and hardware."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=RESULTS.parent, capture_output=True, text=True, check=False
    ).stdout.strip()
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "commit": commit or None,
        "python": platform.python_version(),
        "versions": versions,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
