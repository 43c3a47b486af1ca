"""Collecting rows, and sorting them by what they are of."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from grace_benchmarks.ann.summary import ann_rows
from grace_benchmarks.record import Row, read_rows
from grace_retrieval.errors import InputError

__all__ = [
    "COLUMN_NAMES",
    "NOTHING",
    "TIMES",
    "by_matrix",
    "collect",
    "compared",
    "index_name",
    "latest",
    "matrix_name",
    "of_kind",
    "system_name",
]

NOTHING = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
COLUMN_NAMES = {
    "bm25": "",
    "text": "text only",
    "rationale": "with rationale",
    "echo": "text twice",
    "crossed": "documents with rationale",
    "hybrid": "with rationale + BM25",
    "bm25-documents": "rationales of documents, by BM25",
    "bm25-queries": "rationales of queries, by BM25",
    "bm25-both": "rationales of both, by BM25",
    "run": "run file",
}


def collect(sources: Sequence[Path]) -> list[Row]:
    """All rows of result files.

    Args:
        sources: `.jsonl` files, or folders of them.

    Raises:
        InputError: If there is no row.
    """
    files: list[Path] = []
    for source in sources:
        files += sorted(source.glob("*.jsonl")) if source.is_dir() else [source]
    rows = [row for file in files for row in read_rows(file)]
    if not rows:
        raise InputError(
            f"No rows in {', '.join(map(str, sources))}: give a .jsonl file or a folder of them, as `grace bench ann` "
            "writes."
        )
    return rows


def of_kind(rows: Iterable[Row], kind: str) -> list[Row]:
    """Rows of "ann", "retrieval", "task" or "encode" that did not fail."""
    return [row for row in rows if row.get("kind") == kind and row["status"] == "ok"]


def latest(rows: Iterable[Row], *names: str) -> list[Row]:
    """The last row of each combination of columns, in the order of the first."""
    found: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        found[tuple(str(row.get(name)) for name in names)] = row
    return list(found.values())


def by_matrix(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Index rows by the matrix that was searched, smallest first; of several runs, the medians."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in ann_rows(rows):
        data = row["data"]
        name = (data["n"], data["dim"], data["digest"], row["device"], row["shard_rows"], row["threads"], row["k"])
        groups.setdefault((*name, row["factory"], row["search"]), []).append(row)
    matrices: dict[str, list[Row]] = {}
    for key in sorted(groups, key=lambda key: key[:3]):
        merged = _median(groups[key])
        matrices.setdefault(matrix_name(merged), []).append(merged)
    return matrices


def matrix_name(row: Row) -> str:
    """What a matrix is called."""
    data = row["data"]
    return f"{data['n']:,} {TIMES} {data['dim']}" + ("" if data["name"] == "generated" else f" ({data['name']})")


def index_name(row: Row) -> str:
    """What an index is called: factory, and where it is not usual."""
    extras = [f"from disk, {row['shard_rows']:,} a shard"] if row["shard_rows"] else []
    extras += [row["device"]] if row["device"] != "cpu" else []
    return str(row["factory"]) + (f" ({', '.join(extras)})" if extras else "")


def system_name(row: Row) -> str:
    """What a system is called."""
    name = ", ".join(filter(None, (row["model"], COLUMN_NAMES[row["column"]])))
    return name + (f" (at most {row['max_new_tokens']} tokens)" if row["max_new_tokens"] else "")


def compared(row: Row, model: str, column: str) -> str:
    """Difference in nDCG@10 to a system that was measured before, with its p-value."""
    for other in row["against"]:
        if (other["model"], other["column"]) == (model, column):
            return f"{other['difference']:+.3f} (p {other['p']:.2g})"
    return NOTHING


def _median(group: Sequence[Row]) -> Row:
    """Runs of one setting: medians of speeds, over all of their range."""
    merged = dict(group[-1])
    for name, choose in (
        *(
            (name, statistics.median)
            for name in ("single_qps", "batch_qps", "latency_p50_ms", "latency_p95_ms", "recall")
        ),
        *((f"{kind}_qps_min", min) for kind in ("single", "batch")),
        *((f"{kind}_qps_max", max) for kind in ("single", "batch")),
    ):
        merged[name] = choose([row[name] for row in group])  # type: ignore[operator]
    return merged
