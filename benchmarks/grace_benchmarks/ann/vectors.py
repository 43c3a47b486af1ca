"""From a source to vectors on disk, in blocks, with queries: what every index of a run is built from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_benchmarks.ann.generate import GeneratedVectors
from grace_benchmarks.ann.sources import StoredVectors, read_matrix
from grace_benchmarks.record import row_key
from grace_retrieval.advice import advise
from grace_retrieval.corpus.matrices.matrix import Metric
from grace_retrieval.corpus.vectors import read_neighbours
from grace_retrieval.errors import InputError

__all__ = ["Vectors", "check_neighbours", "prepare", "work_folder"]

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Vectors in a folder, of length 1 where the cosine decides which are near.

    Attributes:
        folder: `block-00000.npy`, ... and `queries.npy`; and `given.npy`, if neighbours were given.
        name: What the source is called in rows.
        n: Vectors.
        dim: Dimensions.
        queries: Queries.
        digest: Hash of all vectors and queries.
        dropped: Rows without a direction that were left out.
        seed: Seed of the generator, or of the choice of queries.
        metric: What decides which vectors are near.
    """

    folder: Path
    name: str
    n: int
    dim: int
    queries: int
    digest: str
    dropped: int
    seed: int
    metric: Metric = "cosine"

    @classmethod
    def open(cls, folder: Path) -> Vectors:
        """Open a prepared folder."""
        return cls(folder=folder, **json.loads((folder / "vectors.json").read_text(encoding="utf-8")))

    def describe(self) -> dict[str, Any]:
        """The columns of a row that say what was searched."""
        return {name: getattr(self, name) for name in ("name", "n", "dim", "queries", "digest", "dropped", "seed")}

    def blocks(self) -> Iterator[Matrix]:
        """The vectors, block by block: read, not mapped, so that memory holds one block. Shape: (rows, dim)."""
        for file in sorted(self.folder.glob("block-*.npy")):
            yield np.load(file, allow_pickle=False)

    def query_vectors(self) -> Matrix:
        """The queries. Shape: (queries, dim)."""
        found: Matrix = np.load(self.folder / "queries.npy", allow_pickle=False)
        return found

    def given_neighbours(self) -> npt.NDArray[np.int64] | None:
        """Neighbours that came with the vectors; None if none did. Shape: (queries, at least k)."""
        path = self.folder / "given.npy"
        return np.load(path, allow_pickle=False) if path.exists() else None

    def gather(self, ids: npt.NDArray[np.int64]) -> Matrix:
        """Vectors by their place. Shape: (len(ids), dim)."""
        found = np.empty((len(ids), self.dim), dtype=np.float32)
        start = 0
        for file in sorted(self.folder.glob("block-*.npy")):
            block = np.load(file, mmap_mode="r", allow_pickle=False)
            here = (ids >= start) & (ids < start + len(block))
            found[here] = block[ids[here] - start]
            start += len(block)
        return found


def work_folder() -> Path:
    """Where vectors and ground truth are kept: `bench` beside the rationale cache (`$GRACE_CACHE_DIR`)."""
    from grace_retrieval.cache.opening import default_cache_path

    return default_cache_path().parent / "bench"


def prepare(
    source: GeneratedVectors | StoredVectors,
    *,
    work: Path,
    queries: Path | int = 1000,
    seed: int = 0,
    skip_bad: bool = False,
    metric: Metric | None = None,
    truth: Path | None = None,
) -> Vectors:
    """Make vectors and queries of a source, or find them where an earlier run left them.

    Args:
        source: Where the vectors come from.
        work: Folder that holds prepared vectors.
        queries: File of queries, or how many rows of a stored matrix to hold out as queries. Generated vectors bring
            their own.
        seed: Seed of the choice of rows that are held out.
        skip_bad: Leave out rows with NaN, infinity or (for the cosine) only zeros instead of refusing them.
        metric: What decides which vectors are near; None is what the file says, or else the cosine.
        truth: File of the neighbours of each query, nearest first. Not with queries that are held out, nor where rows
            are left out: the places would be others.

    Returns:
        The prepared vectors.

    Raises:
        InputError: If the source has one row, rows without a direction, queries of another dimension, or neighbours of
            other vectors or queries.
    """
    generated = isinstance(source, GeneratedVectors)
    told = None if isinstance(source, GeneratedVectors) else source.metric
    metric = metric or told or "cosine"
    how: dict[str, Any] = {"source": source.describe(), "skip_bad": skip_bad}
    if metric != "cosine":
        how["metric"] = metric
    if truth is not None:
        if not isinstance(queries, Path):
            raise InputError(f"The neighbours in {truth} are those of queries in a file: give it, too.")
        stat = truth.stat() if truth.is_file() else None
        how["truth"] = None if stat is None else [str(truth.resolve()), stat.st_size, stat.st_mtime_ns]
    if not generated:
        how |= {"seed": seed, "queries": _query_identity(queries)}
    folder = work / "vectors" / row_key(how)
    if not (folder / "vectors.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Written beside its name and renamed: a folder that is there is whole.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unfinished-") as made:
            _write(source, Path(made), queries=queries, seed=seed, skip_bad=skip_bad, metric=metric, truth=truth)
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(made, folder)
            os.mkdir(made)
    return Vectors.open(folder)


def _write(
    source: GeneratedVectors | StoredVectors,
    folder: Path,
    *,
    queries: Path | int,
    seed: int,
    skip_bad: bool,
    metric: Metric,
    truth: Path | None,
) -> None:
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(source, GeneratedVectors):
        held, asked, name, seed = np.empty(0, dtype=np.int64), source.query_vectors(), "generated", source.seed
    else:
        name = source.path.name
        held, asked = _queries(source, queries, seed)
    kept, dropped, read, dim = 0, 0, 0, asked.shape[1] if len(asked) else None
    taken = [asked] if len(asked) else []
    for place, block in enumerate(source.blocks()):
        if dim is not None and block.shape[1] != dim:
            raise InputError(f"Vectors of {block.shape[1]} and of {dim} dimensions: give vectors of one model.")
        dim = block.shape[1]
        here = held[(held >= read) & (held < read + len(block))] - read
        taken += [block[here]] if len(here) else []
        rest = np.delete(block, here, axis=0) if len(here) else block
        rest = _good(rest, f"{name}, rows from {read}", skip_bad=skip_bad, metric=metric)
        dropped += len(block) - len(here) - len(rest)
        read, kept = read + len(block), kept + len(rest)
        digest.update(rest.tobytes())
        np.save(folder / f"block-{place:05d}.npy", rest)
    asked = np.concatenate(taken)
    chosen = _good(asked, f"{name}, queries", skip_bad=skip_bad, metric=metric)
    if not kept or not len(chosen):
        raise InputError(f"{name}: {kept} vectors and {len(chosen)} queries are left. Give more vectors.")
    digest.update(chosen.tobytes())
    np.save(folder / "queries.npy", chosen)
    if truth is not None:
        if dropped or len(chosen) < len(asked):
            raise InputError(f"Rows were left out, so the places in {truth} are those of others: mend the vectors.")
        np.save(folder / "given.npy", check_neighbours(truth, rows=kept, queries=len(chosen)))
    content = {
        "name": name,
        "n": kept,
        "dim": dim,
        "queries": len(chosen),
        "digest": digest.hexdigest(),
        "dropped": dropped,
        "seed": seed,
        "metric": metric,
    }
    (folder / "vectors.json").write_text(json.dumps(content), encoding="utf-8")


def _queries(source: StoredVectors, queries: Path | int, seed: int) -> tuple[npt.NDArray[np.int64], Matrix]:
    """Places of rows to hold out, and queries of a file: one of the two is empty."""
    if isinstance(queries, Path):
        return np.empty(0, dtype=np.int64), read_matrix(queries)
    if source.rows < 2:
        raise InputError(
            f"{source.path} holds one row: nothing is left to search once it is held out as the query. "
            + advise("give more vectors", ("queries in a file ({})", "--queries", "queries"))
        )
    # At most a tenth is held out, so that a small matrix stays what it was.
    count = max(1, min(queries, source.rows // 10))
    chosen = np.random.default_rng(seed).choice(source.rows, count, replace=False)
    return np.sort(chosen).astype(np.int64), np.empty((0, 0), dtype=np.float32)


def _query_identity(queries: Path | int) -> Any:
    return StoredVectors(path=queries).describe() if isinstance(queries, Path) else queries


def _good(rows: Matrix, where: str, *, skip_bad: bool, metric: Metric) -> Matrix:
    """Rows, at length 1 for the cosine; those that cannot be compared are refused or left out."""
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    good = np.isfinite(lengths) & ((lengths > 0) | (metric != "cosine"))
    if not good.all() and not skip_bad:
        first = int(np.argmin(good))
        what = "only zeros" if lengths[first] == 0 else "NaN or infinity"
        raise InputError(
            f"{where}: {int((~good).sum())} rows have no direction (row {first} of these has {what}). "
            + advise("mend the vectors", ("leave such rows out ({})", "--skip-bad", "skip_bad=True"))
        )
    kept = rows if good.all() else rows[good]
    if metric == "cosine":
        kept = kept / lengths[good, None]
    return np.ascontiguousarray(kept.astype(np.float32, copy=False))


def check_neighbours(path: Path, *, rows: int, queries: int) -> npt.NDArray[np.int64]:
    """Read given neighbours.

    Args:
        path: Their file.
        rows: Number of vectors.
        queries: Number of queries.

    Returns:
        Places, nearest first. Shape: (queries, at least 1).

    Raises:
        InputError: If their number or places are not those of these vectors and queries.
    """
    found = read_neighbours(path)
    if len(found) != queries or found.min(initial=0) < 0 or found.max(initial=0) >= rows:
        raise InputError(
            f"{path} holds neighbours of {len(found):,} queries, at places from {found.min(initial=0):,} to "
            f"{found.max(initial=0):,}: give those of these {queries:,} queries among these {rows:,} vectors."
        )
    return found
