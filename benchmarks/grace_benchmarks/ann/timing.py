"""Timing of searches: whole batches and single queries, in rounds.

Repeats of one setting are spread over the whole measurement (round 1 of every setting, then round 2, ...), so that
their spread holds what changes on the machine meanwhile.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["SearchTimes", "TimingOptions", "time_searches"]

Search = Callable[[npt.NDArray[np.float32]], Any]


@dataclass(frozen=True, kw_only=True)
class TimingOptions:
    """How often to measure.

    Args:
        repeats: Rounds.
        singles: Queries searched one at a time in a round.
        min_seconds: A batch is searched again and again until a round took this long, as `timeit` does.
    """

    repeats: int = 5
    singles: int = 200
    min_seconds: float = 0.1


@dataclass
class SearchTimes:
    """What one setting took.

    Attributes:
        batch: Wall seconds of a batch, one value a round.
        batch_cpu: CPU seconds of a batch, one value a round.
        singles: Wall seconds of single queries. One array a round. Shape: (queries,).
    """

    batch: list[float] = field(default_factory=list)
    batch_cpu: list[float] = field(default_factory=list)
    singles: list[npt.NDArray[np.float64]] = field(default_factory=list)

    def columns(self, queries: int) -> dict[str, Any]:
        """The columns of a row.

        Args:
            queries: Queries of a batch.
        """
        batch = queries / np.array(self.batch)
        single = np.array([len(taken) / taken.sum() for taken in self.singles])
        every = np.concatenate(self.singles) * 1e3
        return {
            "batch": queries,
            "batch_qps": _round(np.median(batch)),
            "batch_qps_min": _round(batch.min()),
            "batch_qps_max": _round(batch.max()),
            "batch_cpu_ms_per_query": _round(np.median(self.batch_cpu) / queries * 1e3),
            "single_qps": _round(np.median(single)),
            "single_qps_min": _round(single.min()),
            "single_qps_max": _round(single.max()),
            "latency_p50_ms": _round(np.percentile(every, 50)),
            "latency_p95_ms": _round(np.percentile(every, 95)),
        }


def time_searches(
    settings: Sequence[Callable[[], Search]], queries: npt.NDArray[np.float32], options: TimingOptions
) -> list[SearchTimes]:
    """Measure several settings of one index in rounds.

    Args:
        settings: Each makes its setting current and returns the search to call with queries.
        queries: Queries. Shape: (queries, dim).
        options: How often.

    Returns:
        The times, one entry a setting.
    """
    found = [SearchTimes() for _ in settings]
    loops = []
    for make in settings:  # warm-up, which also says how many searches make a round
        search = make()
        for query in queries[:3]:
            search(query[None])
        started = time.perf_counter()
        search(queries)
        loops.append(max(1, math.ceil(options.min_seconds / (time.perf_counter() - started))))
    for _ in range(options.repeats):
        for make, times, loop in zip(settings, found, loops, strict=True):
            search = make()
            wall, cpu = time_batch(search, queries, loop)
            times.batch.append(wall)
            times.batch_cpu.append(cpu)
            times.singles.append(time_singles(search, queries[: options.singles]))
    return found


def time_batch(search: Search, queries: npt.NDArray[np.float32], loops: int) -> tuple[float, float]:
    """Wall and CPU seconds of one batch, over `loops` of them."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(loops):
        search(queries)
    return (time.perf_counter() - wall) / loops, (time.process_time() - cpu) / loops


def time_singles(search: Search, queries: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Wall seconds of every query when searched alone. Shape: (queries,)."""
    rows = [queries[place : place + 1] for place in range(len(queries))]
    clock = time.perf_counter
    marks = [clock()]
    for row in rows:
        search(row)
        marks.append(clock())
    return np.diff(marks)


def _round(value: Any) -> float:
    """Four digits that matter."""
    return float(f"{value:.4g}")
