"""Which FAISS index suits how many vectors, derived from measured rows.

A row says what an index was worth at its size: recall, queries per second, bytes a vector. Between two measured sizes
values are interpolated over log n; beyond the largest, the trend of the last two sizes goes on, and the choice says so.
Of the indexes that reach the recall and fit the memory, the one that answers single queries fastest is taken.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from grace_retrieval.errors import InputError

__all__ = ["MeasuredIndex", "Recommendation", "fill_template", "measured_indexes", "recommend_index"]

_TABLE = Path(__file__).with_name("measured.json")


@dataclass(frozen=True, kw_only=True)
class MeasuredIndex:
    """One measured row.

    Attributes:
        template: FAISS factory string with `{nlist}` and `{pq}`; see `fill_template`.
        search: Search parameters, such as "nprobe=16,k_factor_rf=4"; "" for none.
        n: Vectors.
        dim: Dimensions.
        recall: Recall@10 against exact search.
        qps: Single queries per second, one thread.
        bytes_per_vector: Size of the index.
        build_seconds: Training and adding.
    """

    template: str
    search: str
    n: int
    dim: int
    recall: float
    qps: float
    bytes_per_vector: float
    build_seconds: float


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """An index for a size, and what the choice rests on.

    Attributes:
        factory: FAISS factory string, for unit vectors and METRIC_L2.
        search: Search parameters.
        recall: Expected recall@10.
        qps: Expected single queries per second, one thread of the machine that measured.
        memory_bytes: Expected size of the index.
        rows: The measured rows it rests on.
        notes: Where it goes beyond what was measured.
    """

    factory: str
    search: str
    recall: float
    qps: float
    memory_bytes: int
    rows: tuple[MeasuredIndex, ...]
    notes: tuple[str, ...]


def recommend_index(
    n: int,
    dim: int,
    *,
    memory_bytes: float | None = None,
    recall: float = 0.95,
    rows: Iterable[MeasuredIndex] | None = None,
) -> Recommendation:
    """Choose an index.

    Args:
        n: Vectors.
        dim: Dimensions.
        memory_bytes: Most bytes of the index; None is no limit.
        recall: Least recall@10.
        rows: Measured rows; None takes those that come with the package.

    Returns:
        The fastest index that fits.

    Raises:
        InputError: If a value is out of range, or no measured index reaches the recall in that memory.

    Example:
        >>> recommend_index(500, 256).factory
        'Flat'
    """
    good_memory = memory_bytes is None or memory_bytes > 0
    if not 1 <= n <= 10**12 or not 1 <= dim <= 65536 or not 0 < recall <= 1 or not good_memory:
        raise InputError(
            f"n={n}, dim={dim}, recall={recall}, memory={memory_bytes}: give positive sizes, and a recall above 0 and "
            "at most 1."
        )
    groups: dict[tuple[str, str], list[MeasuredIndex]] = {}
    for row in measured_indexes() if rows is None else rows:
        groups.setdefault((row.template, row.search), []).append(row)
    # An index counts if it was measured on both sides of n; beyond the largest size, if it was measured there. Below
    # the smallest no row says anything, except that exact search gets cheaper.
    sizes = [row.n for group in groups.values() for row in group]
    reach = min(n, max(sizes, default=0))
    choices = [
        _predict(group, n, dim)
        for group in groups.values()
        if max(row.n for row in group) >= reach
        and (min(row.n for row in group) <= reach or (n < min(sizes) and group[0].template == "Flat"))
    ]
    fitting = [c for c in choices if memory_bytes is None or c.memory_bytes <= memory_bytes]
    good = [choice for choice in fitting if choice.recall >= recall]
    if not good:
        raise InputError(_refusal(choices, fitting, n, dim, memory_bytes, recall))
    return max(good, key=lambda choice: (choice.qps, choice.recall))


def fill_template(template: str, n: int, dim: int) -> str:
    """A factory string for so many vectors.

    Args:
        template: Factory string with `{nlist}` and `{pq}`.
        n: Vectors.
        dim: Dimensions.

    Returns:
        `{nlist}` is the power of two next to 2 sqrt(n), and no more than n / 39, so that k-means has enough to learn
        from; `{pq}` is the largest divisor of `dim` that is at most a quarter of it.

    Raises:
        InputError: If the string names something else.

    Example:
        >>> fill_template("IVF{nlist},PQ{pq}x4fs,Refine(SQ8)", n=1_000_000, dim=256)
        'IVF2048,PQ64x4fs,Refine(SQ8)'
    """
    lists = 2 ** max(0, min(round(math.log2(2 * math.sqrt(n))), int(math.log2(max(1, n / 39)))))
    parts = next(parts for parts in range(max(1, dim // 4), 0, -1) if dim % parts == 0)
    values: dict[str, Any] = {"nlist": lists, "pq": parts}
    try:
        return template.format_map(values)
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(f"factory {template!r}: only {{nlist}} and {{pq}} can be filled in ({error!r}).") from error


@cache
def measured_indexes() -> tuple[MeasuredIndex, ...]:
    """The rows that come with the package: those of benchmarks/results/shipped/ann.jsonl, shortened."""
    names = [field.name for field in fields(MeasuredIndex)]
    table = json.loads(_TABLE.read_text(encoding="utf-8"))
    return tuple(MeasuredIndex(**dict(zip(names, row, strict=True))) for row in table["rows"])


def _predict(group: Sequence[MeasuredIndex], n: int, dim: int) -> Recommendation:
    """What one index with one setting is worth at a size."""
    nearest = min((abs(math.log(row.dim / dim)), row.dim) for row in group)[1]
    rows = sorted((row for row in group if row.dim == nearest), key=lambda row: row.n)
    scale = dim / nearest
    recall = _along([(math.log(row.n), row.recall) for row in rows], math.log(n), lone_slope=0.0)
    qps = math.exp(_along([(math.log(row.n), math.log(row.qps)) for row in rows], math.log(n), lone_slope=-1.0)) / scale
    notes = []
    if not rows[0].n <= n <= rows[-1].n:
        notes.append(f"measured at {rows[0].n:,} to {rows[-1].n:,} vectors, extrapolated to {n:,}")
    if dim != nearest:
        notes.append(f"measured with {nearest} dimensions: size and speed scaled to {dim}, recall taken as it was")
    return Recommendation(
        factory=fill_template(rows[0].template, n, dim),
        search=rows[0].search,
        recall=round(min(1.0, max(0.0, recall)), 4),
        qps=float(f"{qps:.3g}"),
        memory_bytes=round(rows[-1].bytes_per_vector * scale * n),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _along(points: Sequence[tuple[float, float]], x: float, *, lone_slope: float) -> float:
    """The value at x: between points on a line, before the first as there, beyond the last on its line if that falls.

    `lone_slope` is the slope beyond a single point.
    """
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    slope = lone_slope
    if len(points) > 1:
        (x0, y0), (x1, y1) = points[-2:]
        slope = min(0.0, (y1 - y0) / (x1 - x0))
    return points[-1][1] + slope * (x - points[-1][0])


def _refusal(
    choices: Sequence[Recommendation],
    fitting: Sequence[Recommendation],
    n: int,
    dim: int,
    memory_bytes: float | None,
    recall: float,
) -> str:
    """Why nothing was chosen, and what comes nearest."""
    limit = "" if memory_bytes is None else f" in {memory_bytes / 2**30:.3g} GiB"
    text = f"No measured index of {n:,} vectors of {dim} dimensions reaches recall {recall}{limit}."
    if fitting:
        best = max(fitting, key=lambda choice: choice.recall)
        text += f" The best that fits is {best.factory} ({best.search or 'no parameters'}), recall {best.recall}."
    reaching = [choice for choice in choices if choice.recall >= recall]
    if reaching:
        least = min(reaching, key=lambda choice: choice.memory_bytes)
        text += f" The smallest that reaches it is {least.factory} with {least.memory_bytes / 2**30:.3g} GiB."
    return f"{text} Lower the recall or give more memory."
