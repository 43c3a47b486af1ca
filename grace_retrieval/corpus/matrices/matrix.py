"""A matrix on disk, read a block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from grace_retrieval.errors import InputError

__all__ = ["BLOCK_ROWS", "Matrix", "Metric", "RowCursor", "of_array"]

Metric = Literal["cosine", "l2", "ip"]
"""What decides which vectors are near: the angle, the Euclidean distance, or the inner product."""

BLOCK_ROWS = 65_536
_VECTORS = ("f2", "f4", "f8", "i1", "u1", "i2", "u2")


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix on disk.

    Attributes:
        path: Where it is.
        rows: Number of vectors.
        read: Streams the vectors as they are stored, so many rows at a time.
        metric: What the file says decides which vectors are near; None if it says nothing.
    """

    path: Path
    rows: int
    read: Callable[[int], Iterator[npt.NDArray[Any]]]
    metric: Metric | None = None

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[npt.NDArray[np.float32]]:
        """The vectors as float32, in blocks of their own. Shape of each: (up to `rows`, dim).

        Args:
            rows: Rows of a block.

        Raises:
            InputError: If the file cannot be read, or is damaged.
        """
        for block in self.read(rows):
            yield np.array(block, dtype=np.float32, order="C")


class RowCursor:
    """Rows of a matrix by their places, which rise.

    Args:
        matrix: The matrix.
    """

    def __init__(self, matrix: Matrix, rows: int = 4096) -> None:
        self._blocks = matrix.blocks(rows)
        self._block = np.empty((0, 0), dtype=np.float32)
        self._start = 0

    def __getitem__(self, place: int) -> npt.NDArray[np.float32]:
        """A row. Shape: (dim,), float32."""
        while place >= self._start + len(self._block):
            self._start += len(self._block)
            self._block = next(self._blocks)
        row: npt.NDArray[np.float32] = self._block[place - self._start]
        return row


def of_array(path: Path, array: Any, *, metric: Metric | None = None) -> Matrix:
    """A matrix of an array, which may be memory-mapped or a data set of HDF5.

    Args:
        path: Where it came from.
        array: Shape: (vectors, dim), of floats, or of whole numbers of one or two bytes.
        metric: What the file says decides which vectors are near.

    Raises:
        InputError: If it has another shape or type.
    """
    if len(array.shape) != 2 or array.dtype.newbyteorder("=").str[1:] not in _VECTORS:
        raise InputError(
            f"{path} has shape {tuple(array.shape)} and dtype {array.dtype}: give a matrix with a vector a row, of "
            "floating-point numbers or of whole numbers of one or two bytes."
        )
    return Matrix(path=path, rows=int(array.shape[0]), read=partial(_slices, array), metric=metric)


def _slices(array: Any, rows: int) -> Iterator[npt.NDArray[Any]]:
    for start in range(0, array.shape[0], rows):
        yield array[start : start + rows]
