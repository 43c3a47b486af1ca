"""Which FAISS index an offline build makes: exact search while it is fast, then what measured rows recommend.

`recommend_index` decides from rows, as `grace bench ann --recommend` does. Where no measured index fits the memory,
4-bit product quantisation alone is built: its candidates are scored again by the stored vectors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from grace_retrieval.advice import advise
from grace_retrieval.errors import InputError
from grace_retrieval.indexing.recommend import Recommendation, recommend_index

__all__ = ["IndexChoice", "Metric", "choose_index", "index_bytes"]

Metric = Literal["inner_product", "l2"]

FLAT_LIMIT = 100_000
"""Up to so many vectors exact search takes milliseconds a query."""

RECALL = 0.9
"""Least recall@10 of an index that is not exact."""

_HNSW_QUANTIZER_FROM = 10_000_000
_POINTS_PER_LIST = 39  # FAISS warns below this


@dataclass(frozen=True, kw_only=True)
class IndexChoice:
    """A FAISS index to build.

    Attributes:
        factory: Factory string of `faiss.index_factory`.
        metric: "inner_product" for Flat; "l2" for everything quantised: on vectors of length 1 both rank alike, and
            L2 keeps more recall (PQ .67 against .53, SQ4 .905 against .834).
        search: Search parameters: nprobe, efSearch, k_factor.
        bytes: Memory of the index when it is loaded, estimated.
        explanation: Why this one, in a sentence or two.
    """

    factory: str
    metric: Metric
    search: Mapping[str, int] = field(default_factory=dict)
    bytes: int
    explanation: str


def choose_index(
    vectors: int, dimension: int, *, memory_bytes: int | None = None, factory: str | None = None
) -> IndexChoice:
    """Choose a FAISS index.

    Args:
        vectors: Number of vectors.
        dimension: Their dimensions.
        memory_bytes: Most memory the index may take when it is searched; None sets no limit.
        factory: A factory string that overrides the choice.

    Returns:
        The choice, with its explanation.

    Raises:
        InputError: If no index of that many vectors fits into the memory, or an argument is out of range.

    Example:
        >>> choose_index(20_000, 1024).factory
        'Flat'
        >>> choose_index(20_000, 1024, factory="HNSW32,SQ8").search
        {'efSearch': 256}
    """
    if vectors < 0 or dimension < 1 or (memory_bytes is not None and memory_bytes < 1):
        raise InputError(
            f"vectors={vectors}, dimension={dimension}, memory_bytes={memory_bytes}: give positive numbers."
        )
    if factory is not None:
        return _given(factory, vectors, dimension)
    flat = index_bytes("Flat", vectors, dimension)
    if vectors <= FLAT_LIMIT and (memory_bytes is None or flat <= memory_bytes):
        return IndexChoice(
            factory="Flat",
            metric="inner_product",
            bytes=flat,
            explanation=f"{vectors:,} vectors are few enough for exact search (Flat up to {FLAT_LIMIT:,}): recall 1, "
            f"{_size(flat)}.",
        )
    limit = "" if memory_bytes is None else f" in {_size(memory_bytes)}"
    too_many = f"{vectors:,} vectors are too many for exact search{limit}"
    found = _recommended(vectors, dimension, memory_bytes)
    if found is not None:
        size = index_bytes(found.factory, vectors, dimension)
        expected = "; ".join((f"expected recall {found.recall:.2f}", *found.notes))
        return IndexChoice(
            factory=found.factory,
            metric="inner_product" if found.factory == "Flat" else "l2",
            search=_parameters(found.search),
            bytes=size,
            explanation=f"{too_many}: of the measured indexes with recall@10 of {RECALL} or more, this one "
            f"answers fastest ({expected}); {_size(size)}.",
        )
    lists = _lists(vectors)
    factory = f"{_coarse(lists, vectors)},{_codes(dimension)}"
    size = index_bytes(factory, vectors, dimension)
    if memory_bytes is None or size <= memory_bytes:
        probes = max(1, min(64, lists // 4))
        return IndexChoice(
            factory=factory,
            metric="l2",
            search={"nprobe": probes},
            bytes=size,
            explanation=f"{too_many}, and no measured index with recall@10 of {RECALL} fits: 4-bit product "
            f"quantisation in {lists:,} lists, of which {probes} are searched, and candidates scored again by the "
            f"stored vectors; {_size(size)}.",
        )
    raise InputError(
        f"No index of {vectors:,} vectors of {dimension} dimensions fits into {_size(memory_bytes or 0)}; the smallest "
        f"takes {_size(size)}. "
        + advise("give more memory", ("fewer dimensions ({})", "--truncate-dim", "truncate_dim"))
    )


def index_bytes(factory: str, vectors: int, dimension: int) -> int:
    """Estimate the memory of an index.

    Args:
        factory: Factory string.
        vectors: Number of vectors.
        dimension: Their dimensions.
    """
    size = 0.0
    for part in re.split(r",(?![^(]*\))", factory):
        if found := re.fullmatch(r"IVF(\d+)(_HNSW\d+)?", part):
            size += int(found[1]) * dimension * 4 + vectors * 8
        elif found := re.fullmatch(r"HNSW(\d+)", part):
            size += vectors * (int(found[1]) * 2 * 4 + 16)
        elif found := re.fullmatch(r"PQ(\d+)(?:x(\d+))?(?:fs)?(?:r)?", part):
            size += vectors * int(found[1]) * int(found[2] or 8) / 8
        elif found := re.fullmatch(r"(?:Refine\()?(?:SQ(\d+|fp16|bf16))\)?", part):
            bits = 16 if found[1] in ("fp16", "bf16") else int(found[1])
            size += vectors * dimension * bits / 8
        elif part in ("Flat", "Refine(Flat)", "RFlat"):
            size += vectors * dimension * 4
        elif found := re.fullmatch(r"(?:Refine\()?RaBitQ(?:fs)?\d*\)?", part):
            size += vectors * (dimension / 8 + 8)
    return math.ceil(size)


def _given(factory: str, vectors: int, dimension: int) -> IndexChoice:
    search: dict[str, int] = {}
    if found := re.search(r"IVF(\d+)", factory):
        search["nprobe"] = max(1, min(64, int(found[1]) // 4))
    if "HNSW" in factory.split(",")[0] and "IVF" not in factory:
        search["efSearch"] = 256
    if "Refine" in factory or "RFlat" in factory:
        search["k_factor"] = 10
    size = index_bytes(factory, vectors, dimension)
    return IndexChoice(
        factory=factory,
        metric="inner_product" if factory == "Flat" else "l2",
        search=search,
        bytes=size,
        explanation=f"{factory} was asked for; about {_size(size)}.",
    )


def _lists(vectors: int) -> int:
    """Number of inverted lists: a power of 2 near 4·√n, and few enough to be trained."""
    wanted: int = 2 ** round(math.log2(4 * math.sqrt(max(vectors, 1))))
    most: int = 2 ** int(math.log2(max(vectors // _POINTS_PER_LIST, 1)))
    return max(1, min(wanted, most, 262_144))


def _coarse(lists: int, vectors: int) -> str:
    return f"IVF{lists}_HNSW32" if vectors > _HNSW_QUANTIZER_FROM else f"IVF{lists}"


def _codes(dimension: int) -> str:
    """Product quantisation of d/2 parts of 4 bits, which nothing refines."""
    for parts in (dimension // 2, dimension // 4, dimension // 8, 1):
        if parts >= 1 and dimension % parts == 0:
            return f"PQ{parts}x4fs"
    return "PQ1x4fs"


def _recommended(vectors: int, dimension: int, memory_bytes: int | None) -> Recommendation | None:
    """What measured rows recommend; None if nothing that was measured reaches the recall in the memory."""
    try:
        found = recommend_index(vectors, dimension, memory_bytes=memory_bytes, recall=RECALL)
    except InputError:
        return None
    # Sizes by our own reckoning too, so that what is said to fit does.
    fits = memory_bytes is None or index_bytes(found.factory, vectors, dimension) <= memory_bytes
    return found if fits else None


def _parameters(search: str) -> dict[str, int]:
    """FAISS's parameter string under the names of a manifest."""
    pairs = (part.split("=") for part in search.split(",") if part)
    return {"k_factor" if name == "k_factor_rf" else name: int(value) for name, value in pairs}


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
