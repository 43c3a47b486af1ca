"""What is measured: which indexes, with which search parameters, over which vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grace_retrieval.errors import InputError

__all__ = ["AnnOptions", "IndexSpec", "default_indexes"]


@dataclass(frozen=True, kw_only=True)
class IndexSpec:
    """An index of a suite.

    Args:
        factory: FAISS factory string; `{nlist}` (lists for this many vectors) and `{pq}` (a quarter of the dimensions)
            are filled in.
        search: Settings of search parameters, each like "nprobe=16,k_factor_rf=4"; "" is FAISS's default.
        min_n: Fewest vectors to measure it with.
        max_n: Most vectors to measure it with.
        shard_rows: Vectors of a piece of the index; pieces are searched from disk. 0 is one index in memory.
        device: "cpu", "gpu" or "cuvs".

    Raises:
        InputError: If a value is of another type or out of range.
    """

    factory: str
    search: Sequence[str] = ("",)
    min_n: int = 0
    max_n: int = 10**12
    shard_rows: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check what FAISS would not."""
        if not str(self.factory).strip():
            raise InputError(f"factory={self.factory!r}: give a FAISS factory string, e.g. 'IVF{{nlist}},SQ8'.")
        # A suite may hold anything here, whatever the annotations say.
        if isinstance(self.search, str) or not self.search or not all(type(item) is str for item in self.search):
            raise InputError(f"search={self.search!r} of {self.factory}: give a list of strings like 'nprobe=16'.")
        if self.device not in ("cpu", "gpu", "cuvs"):
            raise InputError(f"device={self.device!r} of {self.factory}: give cpu, gpu or cuvs.")
        if type(self.shard_rows) is not int or self.shard_rows < 0:
            raise InputError(f"shard_rows={self.shard_rows!r} of {self.factory}: give a whole number, 0 for one index.")


@dataclass(frozen=True, kw_only=True)
class AnnOptions:
    """How indexes are measured.

    Args:
        k: Neighbours of each query.
        threads: Threads of a search.
        build_threads: Threads of training and adding.
        repeats: Rounds of measurement, at least 3.
        singles: Queries searched one at a time in a round.
        train_size: Most vectors to train with.
        seed: Seed of the choice of training vectors.
        run: Number of this run: another number measures everything again beside the rows that are there.

    Raises:
        InputError: If a value is out of range.
    """

    k: int = 10
    threads: int = 1
    build_threads: int = 1
    repeats: int = 5
    singles: int = 200
    train_size: int = 100_000
    seed: int = 0
    run: int = 1

    def __post_init__(self) -> None:
        """Check the ranges."""
        lowest = {"repeats": 3, "seed": 0}
        for name in self.__dataclass_fields__:
            value, low = getattr(self, name), lowest.get(name, 1)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise InputError(f"{name}={value!r}: give a whole number of at least {low}.")


def default_indexes() -> list[IndexSpec]:
    """Indexes worth a look at any size: exact, compressed, inverted lists and a graph."""
    return [
        IndexSpec(factory="Flat"),
        IndexSpec(factory="SQ8"),
        IndexSpec(factory="PQ{pq}x4fs,Refine(SQ8)", search=["k_factor_rf=4", "k_factor_rf=20"]),
        IndexSpec(factory="IVF{nlist},SQ8", search=["nprobe=8", "nprobe=32"]),
        IndexSpec(
            factory="IVF{nlist},PQ{pq}x4fs,Refine(SQ8)",
            search=["nprobe=8,k_factor_rf=4", "nprobe=32,k_factor_rf=10", "nprobe=64,k_factor_rf=10"],
        ),
        IndexSpec(factory="HNSW32,Flat", search=["efSearch=32", "efSearch=128"]),
    ]
