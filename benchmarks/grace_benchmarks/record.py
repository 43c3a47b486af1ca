"""How results are kept: rows, and where, with what and by which command each was made.

A one-shot comparison is one document, `NAME.json`. A run that may be interrupted appends rows to `NAME.jsonl`, one run
a line, each with its own environment. `read_rows` reads both.
"""

from __future__ import annotations

import hashlib
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
from functools import cache
from pathlib import Path
from typing import Any

from grace_retrieval.errors import InputError

__all__ = ["RESULTS", "Row", "RowFile", "Timing", "environment", "measure", "read_rows", "row_key", "write_result"]

RESULTS = Path(__file__).resolve().parents[1] / "results"

Row = dict[str, Any]
"""One result: JSON values by name."""

_PACKAGES = (
    "grace-retrieval",
    "bm25s",
    "faiss-cpu",
    "faiss-gpu",
    "faiss-gpu-cuvs",
    "ir-measures",
    "mteb",
    "numpy",
    "sentence-transformers",
    "torch",
    "transformers",
)


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
    """Write a document of `benchmarks/results`.

    Args:
        name: Module of `programs` that measured.
        rows: What was measured.
        file: File name without ending; None is `name`.
        **settings: Seeds, sizes and other choices.

    Returns:
        The file.
    """
    document = {
        "command": f"python -m {_module(name)} {' '.join(sys.argv[1:])}".strip(),
        "environment": {**environment(), "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024},
        "settings": settings,
        "rows": list(rows),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{file or name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path


def row_key(identity: Mapping[str, Any]) -> str:
    """Name of what a row measures, from everything that decides it.

    Args:
        identity: JSON values.

    Returns:
        16 hexadecimal digits.

    Example:
        >>> row_key({"factory": "Flat", "run": 1}) == row_key({"run": 1, "factory": "Flat"})
        True
    """
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class RowFile:
    """JSON lines that a run appends to, and that a second run goes on from.

    Args:
        path: The file; made when the first row is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._keys = {str(row["key"]) for row in read_rows(path)} if path.exists() else set()

    def __contains__(self, key: str) -> bool:
        """Whether a row of this key is finished."""
        return key in self._keys

    def append(self, row: Mapping[str, Any]) -> Row:
        """Write a row with its environment; when this returns, it survives a crash.

        Args:
            row: The row; `key` says what it measures.

        Returns:
            The row as it was written.

        Raises:
            InputError: If the folder cannot be written.
        """
        whole: Row = {**row, "environment": environment(), "command": _command()}
        line = json.dumps(whole, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # A line that a killed run left half written is cut off, or this one would be appended to it.
            with open(self.path, "ab+") as file:
                _drop_torn_line(file)
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"Cannot write {self.path}: {error.strerror}. Give another folder with --out.") from error
        self._keys.add(str(row["key"]))
        return whole


def read_rows(path: Path) -> list[Row]:
    """Read a result file.

    Args:
        path: A `.json` document or `.jsonl` rows. A last line that was cut off by a kill is left out.

    Returns:
        Its rows, each with `environment` and `command`.

    Raises:
        InputError: If the file is missing or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    try:
        if path.suffix == ".json":
            document = json.loads(text)
            shared = {key: document[key] for key in ("environment", "command")}
            return [{**shared, **row} for row in document["rows"]]
        lines = text.split("\n")
        return [json.loads(line) for line in lines[:-1] if line.strip()]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a result file ({error!r}): give one that `grace bench` wrote.") from error


@cache
def environment() -> dict[str, Any]:
    """Commit, versions and hardware of this process."""
    commit = _git("rev-parse", "--short", "HEAD")
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "commit": commit,
        "python": platform.python_version(),
        "versions": versions,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "date": time.strftime("%Y-%m-%d"),
    }


def _command() -> str:
    """The command line, without the folders of this machine."""
    program = Path(sys.argv[0]).name
    return " ".join(["grace" if program in ("__main__.py", "grace") else program, *sys.argv[1:]])


def _module(name: str) -> str:
    """The module that runs, by its whole name."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return name if spec is None else str(spec.name)


def _git(*arguments: str) -> str | None:
    try:
        found = subprocess.run(
            ["git", *arguments], cwd=RESULTS.parent, capture_output=True, text=True, check=False
        ).stdout.strip()
    except OSError:
        return None
    return found or None


def _drop_torn_line(file: Any) -> None:
    file.seek(0)
    content: bytes = file.read()
    if content and not content.endswith(b"\n"):
        file.truncate(content.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
