"""Arrays of numpy: .npy, memory-mapped, and .npz, whose one matrix is read into memory."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_retrieval.corpus.matrices.matrix import Matrix, of_array
from grace_retrieval.errors import InputError

__all__ = ["npy_array", "npy_matrix", "npz_array", "npz_matrix"]


def npy_matrix(path: Path, column: str) -> Matrix:
    """A matrix of an .npy file, memory-mapped, of any byte order and order of its axes.

    Raises:
        InputError: If it cannot be read, was cut short, or holds no matrix.
    """
    return of_array(path, npy_array(path))


def npy_array(path: Path) -> npt.NDArray[Any]:
    """The memory-mapped array of an .npy file.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"Cannot read {path} as .npy: {error}.") from error
    return array


def npz_matrix(path: Path, column: str) -> Matrix:
    """A matrix of an .npz file: the array of that name, or its only matrix.

    Raises:
        InputError: If it cannot be read, or it is not clear which array is meant.
    """
    return of_array(path, npz_array(path, (column,)))


def npz_array(path: Path, names: tuple[str, ...]) -> npt.NDArray[Any]:
    """An array of an .npz file: the first of these names that is there, or its only array.

    Raises:
        InputError: If it cannot be read, or it is not clear which array is meant.
    """
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as arrays:
            there = arrays.files
            name = next((name for name in names if name in there), there[0] if len(there) == 1 else None)
            if name is not None:
                array: npt.NDArray[Any] = arrays[name]
                return array
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"Cannot read {path} as .npz: {error}.") from error
    raise InputError(f"{path} holds the arrays {', '.join(there)}: call the one that is meant {names[0]!r}.")
