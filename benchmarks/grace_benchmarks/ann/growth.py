"""Does the cost of a search grow as smaller sizes predict?

The suite `growth` searches shards of one size from disk, from one shard to eight. Then a query costs a + b n: the line
through the sizes but the largest predicts the largest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from grace_benchmarks.ann.summary import ann_rows
from grace_benchmarks.record import Row

__all__ = ["growth_table"]


def growth_table(rows: Iterable[Row]) -> list[Row]:
    """Cost of a query by size, measured and, for the largest size, predicted.

    Args:
        rows: Rows of indexes in shards.

    Returns:
        One entry a row: factory, search, n, `measured_ms` (CPU time of a query in a batch, which other work on the
        machine disturbs least) and `predicted_ms` (None for all but the largest).
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in ann_rows(rows):
        if row["shard_rows"]:
            groups.setdefault((row["factory"], row["search"]), []).append(row)
    found: list[Row] = []
    for (factory, search), group in groups.items():
        ordered = sorted(group, key=lambda row: row["data"]["n"])
        sizes = [row["data"]["n"] for row in ordered]
        costs = [row["batch_cpu_ms_per_query"] for row in ordered]
        predicted = None
        if len(ordered) >= 3:
            slope, start = np.polyfit(sizes[:-1], costs[:-1], 1)
            predicted = float(start + slope * sizes[-1])
        for n, cost in zip(sizes, costs, strict=True):
            last = n == sizes[-1]
            found.append(
                {
                    "factory": factory,
                    "search": search,
                    "n": n,
                    "measured_ms": cost,
                    "predicted_ms": predicted if last else None,
                }
            )
    return found
