"""Vectors of parquet: a column of lists, as pandas and `grace embed` write it, or a column a dimension."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_retrieval.corpus.matrices.matrix import Matrix
from grace_retrieval.corpus.readers.arrow_files import pandas_index
from grace_retrieval.errors import InputError

__all__ = ["parquet_matrix"]


def parquet_matrix(path: Path, column: str) -> Matrix:
    """Vectors of a parquet file, or of a folder of such files that have the column (an index, or its shards).

    Args:
        path: File or folder.
        column: The column of lists. A file without it whose columns are all numbers has a column a dimension.

    Raises:
        InputError: If there is no such file, or no such column.
    """
    import pyarrow.parquet as pq

    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    chosen: list[tuple[Path, list[str]]] = []
    rows = 0
    for file in files:
        with _as_parquet(file):
            schema = pq.read_schema(file)
            columns = [column] if column in schema.names else _dimensions(schema) if path.is_file() else []
            if columns:
                chosen.append((file, columns))
                rows += pq.read_metadata(file).num_rows
            elif path.is_file():
                raise InputError(f"{file} has no column {column!r}, but {schema.names}.")
    if not chosen:
        raise InputError(f"{path} holds no parquet file with a column {column!r}.")
    return Matrix(path=path, rows=rows, read=partial(_rows, chosen))


def _rows(files: Sequence[tuple[Path, list[str]]], rows: int) -> Iterator[npt.NDArray[Any]]:
    import pyarrow.parquet as pq

    for path, columns in files:
        with _as_parquet(path), pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=rows, columns=columns):
                if batch.num_rows:
                    yield (
                        _of_lists(batch.column(0), path) if _is_list(batch.schema.field(0).type) else _wide(batch, path)
                    )


def _dimensions(schema: Any) -> list[str]:
    """Names of the columns, if all are numbers; those in which pandas numbers its rows do not count."""
    index = pandas_index(schema)
    names = [name for name in schema.names if name not in index]
    return names if all(_is_number(schema.field(name).type) for name in names) else []


def _of_lists(column: Any, path: Path) -> npt.NDArray[Any]:
    kind = column.type
    if not _is_number(kind.value_type):
        raise InputError(f"{path}: the vectors are {kind}, not lists of floating-point numbers.")
    rows = len(column)
    values = column.flatten().to_numpy(zero_copy_only=False)
    if column.null_count or values.size % rows or (not hasattr(kind, "list_size") and _ragged(column)):
        raise InputError(f"{path}: rows have different numbers of dimensions, or none. Embed them with one model.")
    matrix: npt.NDArray[Any] = values.reshape(rows, -1)
    return matrix


def _wide(batch: Any, path: Path) -> npt.NDArray[Any]:
    if not all(_is_number(field.type) for field in batch.schema):
        kinds = ", ".join(dict.fromkeys(str(field.type) for field in batch.schema))
        raise InputError(f"{path}: the vectors are {kinds}, not lists of floating-point numbers.")
    return np.stack([column.to_numpy(zero_copy_only=False) for column in batch.columns], axis=1)


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_floating(kind) or (pa.types.is_integer(kind) and kind.bit_width <= 16))


def _ragged(column: Any) -> bool:
    import pyarrow.compute as pc

    return len(pc.unique(pc.list_value_length(column))) != 1


@contextmanager
def _as_parquet(path: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"Cannot read {path} as parquet: {' '.join(str(error).split())}") from error
