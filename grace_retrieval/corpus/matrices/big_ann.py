"""Vectors and neighbours of big-ann-benchmarks: two counts (uint32, little-endian), then the numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_retrieval.corpus.matrices.matrix import Matrix, of_array
from grace_retrieval.errors import InputError

__all__ = ["big_ann_array", "big_ann_matrix", "big_ann_neighbours", "big_ann_suffix"]

_TYPES = {".fbin": "<f4", ".u8bin": "u1", ".i8bin": "i1", ".ibin": "<i4"}
_CROPPED = re.compile(r"\.crop_nb_\d+$")
_HEAD = 8


def big_ann_suffix(path: Path) -> str:
    """End of a file's name, without what is behind it where the first rows of a larger file were taken.

    Example:
        >>> big_ann_suffix(Path("base.1B.u8bin.crop_nb_10000000"))
        '.u8bin'
    """
    return Path(_CROPPED.sub("", path.name)).suffix.lower()


def big_ann_matrix(path: Path, column: str) -> Matrix:
    """Vectors of a file (.fbin, .u8bin, .i8bin), memory-mapped.

    Raises:
        InputError: If the file has not the length that its counts ask for, is of another byte order, or holds
            neighbours instead of vectors.
    """
    if big_ann_suffix(path) == ".ibin":
        raise InputError(f"{path} holds whole numbers, which are places of neighbours: give vectors (.fbin, ...).")
    return of_array(path, big_ann_array(path))


def big_ann_array(path: Path) -> npt.NDArray[Any]:
    """The memory-mapped numbers of a file. Shape: (rows, width).

    Raises:
        InputError: As of `big_ann_matrix`.
    """
    dtype = np.dtype(_TYPES[big_ann_suffix(path)])
    rows, width = _counts(path, dtype.itemsize)
    return np.memmap(path, dtype=dtype, mode="r", offset=_HEAD, shape=(rows, width))


def big_ann_neighbours(path: Path) -> npt.NDArray[Any]:
    """Places of neighbours in a file of ground truth, in which as many distances stand behind them.

    Args:
        path: The file; ground truth has no name of its own.

    Returns:
        Memory-mapped. Shape: (queries, k), uint32.

    Raises:
        InputError: If the file has not the length that its counts ask for, or is of another byte order.
    """
    rows, width = _counts(path, 8)
    return np.memmap(path, dtype="<u4", mode="r", offset=_HEAD, shape=(rows, width))


def _counts(path: Path, itemsize: int) -> tuple[int, int]:
    try:
        size = path.stat().st_size
        with open(path, "rb") as stream:
            head = stream.read(_HEAD)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    if len(head) < _HEAD:
        raise InputError(f"{path} has {size} bytes, and its counts alone have {_HEAD}: it was cut short.")
    rows, width = (int(count) for count in np.frombuffer(head, "<u4"))
    if rows and width and size == _HEAD + rows * width * itemsize:
        return rows, width
    big_rows, big_width = (int(count) for count in np.frombuffer(head, ">u4"))
    if big_rows and big_width and size == _HEAD + big_rows * big_width * itemsize:
        raise InputError(f"{path} is big-endian, and this format is little-endian: swap the bytes.")
    raise InputError(
        f"{path} says that it holds {rows:,} rows of {width:,} numbers, which take {_HEAD + rows * width * itemsize:,} "
        f"bytes with {itemsize} for each; it has {size:,}. It was cut short, or is of another format."
    )
