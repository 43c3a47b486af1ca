"""Matrices of vectors that users have: .npy, .parquet, folders of parquet, and GraceIndex folders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_benchmarks.ann.generate import BLOCK_ROWS
from grace_retrieval.errors import InputError

__all__ = ["StoredVectors", "read_matrix"]


@dataclass(frozen=True, kw_only=True)
class StoredVectors:
    """A matrix on disk.

    Args:
        path: An .npy file of shape (n, dim), a .parquet file with a column of vectors, or a folder of such parquet
            files (what `grace embed` and a GraceIndex leave).
        column: Column of the vectors.

    Raises:
        InputError: If the file is missing, of another format, or holds no matrix.
    """

    path: Path
    column: str = "vector"

    def __post_init__(self) -> None:
        """Look for the file, and into its header."""
        if not self.path.exists():
            raise InputError(f"{self.path} does not exist: give an .npy or .parquet file or a folder of parquet files.")
        if self.path.is_file() and self.path.suffix.lower() not in (".npy", ".parquet", ".pq"):
            raise InputError(
                f"{self.path}: unknown format. Give an .npy or .parquet file, or a folder of parquet files."
            )
        if not self.path.is_file() and not self._files:
            raise InputError(f"{self.path} holds no parquet file with a column {self.column!r}.")
        if self.rows == 0:
            raise InputError(f"{self.path} holds no vectors: nothing to index.")

    def describe(self) -> dict[str, Any]:
        """What decides the vectors: the files as they are now."""
        files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in self._files]
        return {"path": str(self.path.resolve()), "files": files, "column": self.column}

    @cached_property
    def rows(self) -> int:
        """Number of vectors."""
        if self._npy is not None:
            return int(self._npy.shape[0])
        import pyarrow.parquet as pq

        return sum(pq.read_metadata(file).num_rows for file in self._files)

    @cached_property
    def _npy(self) -> Any:
        """The memory-mapped array of an .npy file; None for parquet."""
        if self.path.suffix.lower() != ".npy":
            return None
        try:
            array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"Cannot read {self.path} as .npy: {error}.") from error
        if array.ndim != 2 or array.dtype.kind != "f":
            raise InputError(
                f"{self.path} has shape {array.shape} and dtype {array.dtype}: give a matrix of floating-point "
                "numbers, one vector a row."
            )
        return array

    @cached_property
    def _files(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        import pyarrow.parquet as pq

        files = sorted(self.path.rglob("*.parquet"))
        return [file for file in files if self.column in pq.read_schema(file).names]

    def blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        """The vectors as they are stored. Shape of each: (up to `BLOCK_ROWS`, dim).

        Raises:
            InputError: If a file cannot be read, or rows have several widths.
        """
        if self._npy is not None:
            for start in range(0, self.rows, BLOCK_ROWS):
                yield np.array(self._npy[start : start + BLOCK_ROWS], dtype=np.float32)
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        for path in self._files:
            try:
                with pq.ParquetFile(path) as file:
                    if self.column not in file.schema_arrow.names:
                        raise InputError(f"{path} has no column {self.column!r}, but {file.schema_arrow.names}.")
                    for batch in file.iter_batches(batch_size=BLOCK_ROWS, columns=[self.column]):
                        yield _matrix(batch.column(0), path)
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"Cannot read {path} as parquet: {' '.join(str(error).split())}") from error


def read_matrix(path: Path) -> npt.NDArray[np.float32]:
    """Read a whole matrix. Shape: (n, dim), float32."""
    return np.concatenate(list(StoredVectors(path=path).blocks()))


def _matrix(column: Any, path: Path) -> npt.NDArray[np.float32]:
    import pyarrow as pa

    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not pa.types.is_floating(kind.value_type):
        raise InputError(f"{path}: the vectors are {kind}, not lists of floating-point numbers.")
    values = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    rows = len(column)
    if column.null_count or values.size % rows or (not pa.types.is_fixed_size_list(kind) and _ragged(column)):
        raise InputError(f"{path}: rows have different numbers of dimensions, or none. Embed them with one model.")
    return np.ascontiguousarray(values.reshape(rows, -1))


def _ragged(column: Any) -> bool:
    import pyarrow.compute as pc

    return len(pc.unique(pc.list_value_length(column))) != 1
