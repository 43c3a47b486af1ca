"""HDF5 as ann-benchmarks has it: train, test, neighbors and distances, and an attribute that names the distance."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_retrieval.corpus.matrices.matrix import Matrix, Metric, of_array
from grace_retrieval.errors import InputError, MissingExtraError

__all__ = ["hdf5_array", "hdf5_matrix", "hdf5_names"]

_METRICS: dict[str, Metric] = {"angular": "cosine", "euclidean": "l2", "ip": "ip", "dot": "ip"}


def hdf5_matrix(path: Path, column: str) -> Matrix:
    """Vectors of a file: the data set of that name, or `train`. A block of rows is in memory at a time.

    Raises:
        InputError: If the file cannot be read, has no such data set, or its distance is none of vectors of numbers.
        MissingExtraError: If h5py is not installed.
    """
    with _opened(path) as file:
        name = column if column in file else "train"
        data = _dataset(file, name, path)
        shape = of_array(path, data)  # which refuses what is no matrix
        distance = file.attrs.get("distance")
    told = distance.decode() if isinstance(distance, bytes) else distance
    if told is not None and told not in _METRICS:
        raise InputError(f"{path} is of the distance {told!r}: give vectors of one of {', '.join(_METRICS)}.")
    return Matrix(
        path=path, rows=shape.rows, read=partial(_rows, path, name), metric=None if told is None else _METRICS[told]
    )


def hdf5_array(path: Path, name: str) -> npt.NDArray[Any]:
    """A whole data set of a file.

    Raises:
        InputError: If the file cannot be read, or has no such data set.
        MissingExtraError: If h5py is not installed.
    """
    with _opened(path) as file:
        array: npt.NDArray[Any] = np.asarray(_dataset(file, name, path)[:])
        return array


def hdf5_names(path: Path) -> list[str]:
    """Names of what is in a file.

    Raises:
        InputError: If the file cannot be read.
        MissingExtraError: If h5py is not installed.
    """
    with _opened(path) as file:
        return list(file)


def _rows(path: Path, name: str, rows: int) -> Iterator[npt.NDArray[Any]]:
    with _opened(path) as file:
        data = _dataset(file, name, path)
        for start in range(0, data.shape[0], rows):
            yield data[start : start + rows]


def _dataset(file: Any, name: str, path: Path) -> Any:
    if name not in file or not hasattr(file[name], "shape"):
        there = ", ".join(file) or "(none)"
        raise InputError(f"{path} has no data set {name!r}, but {there}.")
    return file[name]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        h5py = importlib.import_module("h5py")
    except ModuleNotFoundError as error:
        raise MissingExtraError("h5py", "hdf5", "Reading HDF5") from error
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise InputError(f"Cannot read {path} as HDF5: {' '.join(str(error).split())}.") from error
