"""Matrices of vectors that users have: files in the formats of the field, folders of parquet, GraceIndex folders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_benchmarks.ann.generate import BLOCK_ROWS
from grace_retrieval.corpus.matrices.matrix import Matrix, Metric
from grace_retrieval.corpus.vectors import open_matrix
from grace_retrieval.errors import InputError

__all__ = ["StoredVectors", "read_matrix"]


@dataclass(frozen=True, kw_only=True)
class StoredVectors:
    """A matrix on disk.

    Args:
        path: A file of vectors (see `grace_retrieval.corpus.vectors.open_matrix`), or a folder of parquet files (what
            `grace embed` and a GraceIndex leave).
        column: Column of the vectors in parquet, array in .npz, data set in HDF5.

    Raises:
        InputError: If the file is missing, of another format, or holds no matrix.
    """

    path: Path
    column: str = "vector"

    def __post_init__(self) -> None:
        """Look for the file, and into its header."""
        if self.rows == 0:
            raise InputError(f"{self.path} holds no vectors: nothing to index.")

    def describe(self) -> dict[str, Any]:
        """What decides the vectors: the files as they are now."""
        files = [self.path] if self.path.is_file() else sorted(self.path.rglob("*.parquet"))
        stated = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return {"path": str(self.path.resolve()), "files": stated, "column": self.column}

    @property
    def rows(self) -> int:
        """Number of vectors."""
        return self._matrix.rows

    @cached_property
    def dim(self) -> int:
        """Dimensions of the first vector; a file whose rows have several is refused when it is read."""
        return int(next(self._matrix.blocks(1)).shape[1])

    @property
    def metric(self) -> Metric | None:
        """What the file says decides which vectors are near; None if it says nothing."""
        return self._matrix.metric

    @cached_property
    def _matrix(self) -> Matrix:
        return open_matrix(self.path, self.column)

    def blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        """The vectors as float32. Shape of each: (up to `BLOCK_ROWS`, dim).

        Raises:
            InputError: If a file cannot be read, or rows have several widths.
        """
        return self._matrix.blocks(BLOCK_ROWS)


def read_matrix(path: Path) -> npt.NDArray[np.float32]:
    """Read a whole matrix of queries (`test` in HDF5). Shape: (n, dim), float32."""
    column = "test" if path.suffix.lower() in (".hdf5", ".h5") else "vector"
    return np.concatenate(list(StoredVectors(path=path, column=column).blocks()))
