"""Rows of indexes in short: medians over runs, Pareto fronts, and the agreement of two runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from grace_benchmarks.record import Row
from grace_retrieval.indexing.recommend import MeasuredIndex

__all__ = ["agreement", "ann_rows", "measured_rows", "pareto_front"]


def ann_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows of indexes that were measured."""
    return [row for row in rows if row.get("kind") == "ann" and row["status"] == "ok"]


def measured_rows(rows: Iterable[Row]) -> list[MeasuredIndex]:
    """What a recommendation can rest on: recall@10 on one CPU thread, in memory; the median over runs.

    Args:
        rows: Rows of `grace bench ann`.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in ann_rows(rows):
        if row["device"] == "cpu" and row["k"] == 10 and row["threads"] == 1 and not row["shard_rows"]:
            groups.setdefault((row["template"], row["search"], row["data"]["n"], row["data"]["dim"]), []).append(row)

    def median(group: Sequence[Row], name: str) -> float:
        return float(statistics.median(row[name] for row in group))

    return [
        MeasuredIndex(
            template=template,
            search=search,
            n=n,
            dim=dim,
            recall=median(group, "recall"),
            qps=median(group, "single_qps"),
            bytes_per_vector=median(group, "bytes_per_vector"),
            build_seconds=round(median(group, "train_seconds") + median(group, "add_seconds"), 2),
        )
        for (template, search, n, dim), group in sorted(groups.items())
    ]


def pareto_front(rows: Iterable[Row], speed: str = "single_qps") -> list[Row]:
    """Rows that no other row beats in both recall and speed, slowest last (FAISS's own OperatingPoints).

    Args:
        rows: Rows of one matrix.
        speed: Column of queries per second.
    """
    from faiss.contrib.evaluation import OperatingPoints

    points: Any = OperatingPoints()  # type: ignore[no-untyped-call]
    for row in rows:
        points.add_operating_point(row["key"], row["recall"], 1.0 / row[speed])
    best = {key for key, _, _ in points.operating_points}
    return sorted((row for row in rows if row["key"] in best), key=lambda row: -float(row[speed]))


def agreement(first: Iterable[Row], second: Iterable[Row]) -> list[Row]:
    """Compare two runs of the same suite.

    Args:
        first: Rows of one run.
        second: Rows of the other.

    Returns:
        One entry for every setting that both measured: `recall_equal`, and whether the ranges of the repeats overlap
        (`batch_overlap`, `single_overlap`), with the ratio of the medians.
    """

    def name(row: Row) -> tuple[Any, ...]:
        return row["data"]["digest"], row["factory"], row["search"], row["threads"], row["device"], row["shard_rows"]

    theirs = {name(row): row for row in ann_rows(second)}
    found = []
    for row in ann_rows(first):
        other = theirs.get(name(row))
        if other is None:
            continue
        entry: Row = {
            "n": row["data"]["n"],
            "factory": row["factory"],
            "search": row["search"],
            "recall_equal": row["recall"] == other["recall"],
        }
        for kind in ("batch", "single"):
            low, high = (
                max(r[f"{kind}_qps_min"] for r in (row, other)),
                min(r[f"{kind}_qps_max"] for r in (row, other)),
            )
            entry[f"{kind}_overlap"] = low <= high
            entry[f"{kind}_ratio"] = round(other[f"{kind}_qps"] / row[f"{kind}_qps"], 3)
        found.append(entry)
    return found
