"""Files of vectors and of neighbours, in the formats of the field: one table, by the ends of their names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from grace_retrieval.corpus.matrices.big_ann import (
    big_ann_array,
    big_ann_matrix,
    big_ann_neighbours,
    big_ann_suffix,
)
from grace_retrieval.corpus.matrices.hdf5 import hdf5_array, hdf5_matrix, hdf5_names
from grace_retrieval.corpus.matrices.matrix import Matrix
from grace_retrieval.corpus.matrices.numpy_files import npy_array, npy_matrix, npz_array, npz_matrix
from grace_retrieval.corpus.matrices.parquet import parquet_matrix
from grace_retrieval.corpus.matrices.texmex import texmex_array, texmex_matrix
from grace_retrieval.errors import InputError

__all__ = ["MATRIX_SUFFIXES", "has_queries", "is_matrix", "open_matrix", "read_neighbours"]

_READERS: dict[str, Callable[[Path, str], Matrix]] = {
    ".npy": npy_matrix,
    ".npz": npz_matrix,
    ".parquet": parquet_matrix,
    ".pq": parquet_matrix,
    ".fvecs": texmex_matrix,
    ".bvecs": texmex_matrix,
    ".ivecs": texmex_matrix,
    ".fbin": big_ann_matrix,
    ".u8bin": big_ann_matrix,
    ".i8bin": big_ann_matrix,
    ".ibin": big_ann_matrix,
    ".hdf5": hdf5_matrix,
    ".h5": hdf5_matrix,
}
_VECTOR_SUFFIXES = [suffix for suffix in _READERS if suffix not in (".ivecs", ".ibin")]
MATRIX_SUFFIXES = tuple(_READERS)
"""Ends of file names that tell a format of vectors, or of neighbours."""

_HDF5 = (".hdf5", ".h5")


def is_matrix(name: str) -> bool:
    """Whether a name is that of a file of vectors, by its end.

    Example:
        >>> is_matrix("base.fvecs"), is_matrix("vector")
        (True, False)
    """
    return big_ann_suffix(Path(name)) in _READERS


def open_matrix(path: Path, column: str = "vector") -> Matrix:
    """Open a file of vectors.

    Args:
        path: .npy, .npz, .parquet (or a folder of such), .fvecs, .bvecs, .fbin, .u8bin, .i8bin, .hdf5.
        column: Column of vectors in parquet, array in .npz, data set in HDF5. An .npz file of one array and an HDF5
            file with `train` need not have it.

    Raises:
        InputError: If the file is missing, of another format, damaged, or holds no matrix.
        MissingExtraError: If it is HDF5, and h5py is not installed.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist: give {', '.join(_VECTOR_SUFFIXES)} or a folder of parquet files.")
    if path.is_dir():
        return parquet_matrix(path, column)
    if (read := _READERS.get(big_ann_suffix(path))) is None:
        raise InputError(f"{path}: unknown format. Give {', '.join(_VECTOR_SUFFIXES)} or a folder of parquet files.")
    return read(path, column)


def has_queries(path: Path) -> bool:
    """Whether a file of vectors brings queries and their neighbours, as those of ann-benchmarks do."""
    return path.suffix.lower() in _HDF5 and path.is_file() and {"test", "neighbors"} <= set(hdf5_names(path))


def read_neighbours(path: Path) -> npt.NDArray[np.int64]:
    """Places of the nearest vectors, for each query.

    Args:
        path: .ivecs, .ibin, .npy or .npz (neighbors) of whole numbers, HDF5 with `neighbors`, or a file of any other
            name as big-ann-benchmarks has ground truth.

    Returns:
        Shape: (queries, k), int64.

    Raises:
        InputError: If the file is missing, damaged, or holds none.
        MissingExtraError: If it is HDF5, and h5py is not installed.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist: give a file of neighbours.")
    suffix = big_ann_suffix(path)
    if suffix == ".ivecs":
        found = texmex_array(path)
    elif suffix == ".ibin":
        found = big_ann_array(path)
    elif suffix == ".npy":
        found = npy_array(path)
    elif suffix == ".npz":
        found = npz_array(path, ("neighbors", "neighbours", "ids"))
    elif suffix in _HDF5:
        found = hdf5_array(path, "neighbors")
    elif suffix in _READERS:
        raise InputError(f"{path} holds vectors: give a file of neighbours, such as .ivecs or .ibin.")
    else:
        found = big_ann_neighbours(path)
    if found.ndim != 2 or found.dtype.kind not in "iu":
        raise InputError(
            f"{path} has shape {found.shape} and dtype {found.dtype}: give places of neighbours as whole numbers, of "
            "shape (queries, k)."
        )
    return np.asarray(found, dtype=np.int64)
