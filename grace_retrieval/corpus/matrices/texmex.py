"""Vectors of TEXMEX: .fvecs, .bvecs and .ivecs, in which every row begins with its width (int32, little-endian)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_retrieval.corpus.matrices.matrix import Matrix
from grace_retrieval.errors import InputError

__all__ = ["texmex_array", "texmex_matrix"]

_TYPES = {".fvecs": "<f4", ".bvecs": "u1", ".ivecs": "<i4"}
_WIDEST = 1 << 20


def texmex_matrix(path: Path, column: str) -> Matrix:
    """Vectors of a file, memory-mapped. The width of every row is compared as it is read.

    Raises:
        InputError: If the file has not the length that its width asks for, is of another byte order, or holds
            neighbours instead of vectors.
    """
    if path.suffix.lower() == ".ivecs":
        raise InputError(f"{path} holds whole numbers, which are places of neighbours: give vectors (.fvecs, .bvecs).")
    bytes_, dtype = _opened(path)
    return Matrix(path=path, rows=len(bytes_), read=partial(_rows, path, bytes_, dtype))


def texmex_array(path: Path) -> npt.NDArray[Any]:
    """All rows of a file, in memory. Shape: (rows, width).

    Raises:
        InputError: As of `texmex_matrix`.
    """
    bytes_, dtype = _opened(path)
    return np.concatenate(list(_rows(path, bytes_, dtype, 1 << 16)))


def _opened(path: Path) -> tuple[npt.NDArray[np.uint8], np.dtype[Any]]:
    """The rows as bytes, and the type of their numbers. Shape: (rows, 4 + bytes of a row)."""
    dtype = np.dtype(_TYPES[path.suffix.lower()])
    try:
        size = path.stat().st_size
        with open(path, "rb") as stream:
            head = stream.read(4)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    if len(head) < 4:
        raise InputError(f"{path} has {size} bytes: nothing to read.")
    width, swapped = (int.from_bytes(head, order, signed=True) for order in ("little", "big"))
    if not _fits(width, size, dtype):
        if _fits(swapped, size, dtype):
            raise InputError(f"{path} is big-endian, and {path.suffix} is little-endian: swap the bytes.")
        raise InputError(
            f"{path}: its first row has {width:,} numbers of {dtype.itemsize} bytes, and its {size:,} bytes are not "
            f"rows of {4 + width * dtype.itemsize:,}. It was cut short, or is no {path.suffix}."
        )
    row = 4 + width * dtype.itemsize
    return np.memmap(path, dtype=np.uint8, mode="r", shape=(size // row, row)), dtype


def _fits(width: int, size: int, dtype: np.dtype[Any]) -> bool:
    return 0 < width <= _WIDEST and size % (4 + width * dtype.itemsize) == 0


def _rows(path: Path, bytes_: npt.NDArray[np.uint8], dtype: np.dtype[Any], rows: int) -> Iterator[npt.NDArray[Any]]:
    for start in range(0, len(bytes_), rows):
        block = bytes_[start : start + rows]
        other = np.flatnonzero((block[:, :4] != bytes_[0, :4]).any(axis=1))
        if len(other):
            raise InputError(f"{path}: row {start + int(other[0]):,} has another width than the first: it is damaged.")
        yield np.ascontiguousarray(block[:, 4:]).view(dtype)
