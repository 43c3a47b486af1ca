"""Tables whose columns have types: parquet, Arrow's own files, and folders that `datasets` saved."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from grace_retrieval.advice import advise
from grace_retrieval.corpus.row import Row, RowSource
from grace_retrieval.errors import InputError

__all__ = [
    "arrow_rows",
    "arrow_schema",
    "dataset_rows",
    "dataset_schema",
    "is_dataset",
    "pandas_index",
    "parquet_rows",
    "parquet_schema",
]

_ROWS = 1024
_STATE = "state.json"
_SPLITS = "dataset_dict.json"


def parquet_schema(path: str) -> Any:
    """Schema of a parquet file, without its rows.

    Raises:
        InputError: If it cannot be read.
    """
    import pyarrow.parquet as pq

    with _as(path, "parquet"):
        return pq.read_schema(path)


def parquet_rows(source: RowSource, columns: Collection[str] | None) -> Iterator[Row]:
    """Rows of a parquet file; see `Reader`.

    Raises:
        InputError: If the file cannot be read, or a column that is wanted has a type that cannot be carried.
    """
    import pyarrow.parquet as pq

    with _as(source.path, "parquet"), pq.ParquetFile(source.path) as file:
        wanted = _wanted(source, file.schema_arrow, columns)
        yield from _rows(file.iter_batches(batch_size=_ROWS, columns=wanted), wanted)


def arrow_schema(path: str) -> Any:
    """Schema of an Arrow file, without its rows.

    Raises:
        InputError: If it cannot be read.
    """
    with _as(path, "Arrow"), _opened(path) as reader:
        return reader.schema


def arrow_rows(source: RowSource, columns: Collection[str] | None) -> Iterator[Row]:
    """Rows of a file in Arrow's IPC format (.arrow, .feather), memory-mapped; see `Reader`.

    Raises:
        InputError: If the file cannot be read, or a column that is wanted has a type that cannot be carried.
    """
    yield from _arrow_rows(source, [source.path], columns)


def is_dataset(path: str | Path) -> bool:
    """Whether a folder is what `save_to_disk` of `datasets` leaves: one data set, or several splits of one."""
    return (Path(path) / _STATE).is_file() or (Path(path) / _SPLITS).is_file()


def dataset_schema(path: str) -> Any:
    """Schema of a folder that `datasets` saved.

    Raises:
        InputError: If it cannot be read, or holds several splits.
    """
    return arrow_schema(_dataset_files(path)[0])


def dataset_rows(source: RowSource, columns: Collection[str] | None) -> Iterator[Row]:
    """Rows of a folder that `Dataset.save_to_disk` left, memory-mapped; see `Reader`. `datasets` is not needed.

    Raises:
        InputError: If the folder cannot be read, holds several splits, or a column that is wanted has a type that
            cannot be carried.
    """
    yield from _arrow_rows(source, _dataset_files(source.path), columns)


def _dataset_files(path: str) -> list[str]:
    folder = Path(path)
    try:
        if (folder / _SPLITS).is_file():
            splits = json.loads((folder / _SPLITS).read_text(encoding="utf-8"))["splits"]
            names = ", ".join(str(folder / split) for split in splits)
            raise InputError(f"{path} holds the splits {', '.join(splits)} of a data set: give one of {names}.")
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        files = [folder / Path(file["filename"]).name for file in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"Cannot read {path} as a folder of datasets: {error}.") from error
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise InputError(
            f"{path} holds a selection of rows by their numbers, which an old version of datasets left. Save it again "
            "with Dataset.flatten_indices().save_to_disk(folder)."
        )
    if missing := [file.name for file in files if not file.is_file()]:
        raise InputError(f"{path} has no file {missing[0]}, which its {_STATE} names. Copy the whole folder.")
    if not files:
        raise InputError(f"{path} is a data set without files: nothing to read.")
    return [str(file) for file in files]


def _arrow_rows(source: RowSource, files: Sequence[str], columns: Collection[str] | None) -> Iterator[Row]:
    start = 0
    for path in files:
        with _as(path, "Arrow"), _opened(path) as reader:
            wanted = _wanted(source, reader.schema, columns)
            for where, row in _rows(_pieces(reader), wanted, start):
                start += 1
                yield where, row


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    """A reader of either of Arrow's formats: with an index at the end (.feather), or as a stream (datasets)."""
    import pyarrow as pa

    with pa.memory_map(path) as file:
        magic = file.read(6)
        file.seek(0)
        with pa.ipc.open_file(file) if magic == b"ARROW1" else pa.ipc.open_stream(file) as reader:
            yield reader


def _pieces(reader: Any) -> Iterator[Any]:
    numbered = hasattr(reader, "num_record_batches")
    batches = map(reader.get_batch, range(reader.num_record_batches)) if numbered else iter(reader)
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS):
            yield batch.slice(start, _ROWS)


def _rows(batches: Iterable[Any], wanted: Sequence[str], start: int = 0) -> Iterator[Row]:
    row = start
    for batch in batches:
        for values in _exact_times(batch.select(list(wanted))).to_pylist():
            row += 1
            yield f"row {row}", values


def _exact_times(batch: Any) -> Any:
    """Nanoseconds that are whole microseconds as such: only then are they Python's own times without pandas."""
    import pyarrow as pa

    for place, field in enumerate(batch.schema):
        kind = field.type
        if not (pa.types.is_timestamp(kind) or pa.types.is_time64(kind)) or kind.unit != "ns":
            continue
        exact = pa.timestamp("us", kind.tz) if pa.types.is_timestamp(kind) else pa.time64("us")
        try:
            column = batch.column(place).cast(exact)
        except pa.ArrowInvalid:  # finer times: pandas, which made them, reads them
            continue
        batch = batch.set_column(place, field.name, column)
    return batch


def _wanted(source: RowSource, schema: Any, columns: Collection[str] | None) -> list[str]:
    """Columns to read, after a look at their names and types: what is wrong with a column is no matter of rows."""
    index = pandas_index(schema)
    names = [name for name in schema.names if name not in index or (columns is not None and name in columns)]
    source.check_header(names)
    source.check_types({name: _kind(schema.field(name).type) for name in names})
    found = [name for name in names if columns is None or name in columns]
    for name in found:
        if not _can_be_carried(schema.field(name).type):
            raise InputError(
                f"{source.name}: column {name!r} is of type {schema.field(name).type}, which JSON has not. "
                + advise(
                    ("name the columns to carry, without this one ({})", "--metadata", "Columns(metadata=...)"),
                    "write it as text or numbers",
                    "leave it out of the file",
                )
            )
    return found


def pandas_index(schema: Any) -> set[str]:
    """Columns that pandas made of the numbers of its rows; an index that has a name is a column like others.

    Args:
        schema: Schema of a parquet file.
    """
    try:
        about = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
        return {name for name in about.get("index_columns", []) if str(name).startswith("__index_level_")}
    except (ValueError, TypeError, AttributeError):
        return set()


def _kind(kind: Any) -> str:
    """What a type is called where texts and ids are looked for."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if pa.types.is_large_string(kind):
        return "string"
    return "integer" if pa.types.is_integer(kind) else str(kind).removesuffix("_view")


def _can_be_carried(kind: Any) -> bool:
    import pyarrow as pa

    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _can_be_carried(kind.storage_type)
    if types.is_dictionary(kind):
        return _can_be_carried(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _can_be_carried(kind.value_type)
    if types.is_struct(kind):
        return all(_can_be_carried(kind.field(place).type) for place in range(kind.num_fields))
    if types.is_map(kind):
        return _can_be_carried(kind.key_type) and _can_be_carried(kind.item_type)
    tests = [types.is_null, types.is_boolean, types.is_integer, types.is_floating, types.is_string]
    tests += [types.is_large_string, types.is_date, types.is_time, types.is_timestamp]
    return any(test(kind) for test in tests) or str(kind) == "string_view"


@contextmanager
def _as(path: str, what: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"Cannot read {path} as {what}: {' '.join(str(error).split())}") from error
