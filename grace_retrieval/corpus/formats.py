r"""Rows of files, one at a time: JSON lines, CSV, parquet or plain text. A file is never in memory as a whole.

Every complaint names file and line. Texts are kept byte for byte; only "\n" and "\r\n" end a line.
"""

from __future__ import annotations

import csv
import json
import os
import stat
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, get_args

from grace_retrieval.errors import InputError

__all__ = ["SUFFIXES", "InputFormat", "Row", "RowFile", "column_names", "type_name"]

InputFormat = Literal["jsonl", "csv", "parquet", "text"]

_FORMATS: dict[str, InputFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
    ".text": "text",
}
SUFFIXES = tuple(_FORMATS)
"""File names that tell a format."""

_CSV_FIELD_CHARACTERS = 1 << 27
"""Most characters of a value in a CSV file: a quote that is never closed must not draw the rest into memory."""
_PARQUET_ROWS = 1024

Row = tuple[str, Mapping[str, object] | str]
"""Where a row stands, such as "line 7", and its columns or what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class RowFile:
    """A file of rows.

    Args:
        path: A file, or "-" for the standard input.
        format: "jsonl" (an object a line), "csv" (with a header), "parquet" or "text" (a text a line). None goes by
            the file's name.
        text_column: Column or key of the texts. Plain text has no other.

    Raises:
        InputError: If the file is missing, is a folder, or its format is unknown.
    """

    path: str
    format: InputFormat | None = None
    text_column: str = "text"

    def __post_init__(self) -> None:
        """Check file and format before anything is read."""
        if self.path != "-":
            if os.path.isdir(self.path):
                raise InputError(f"{self.path} is a folder: give one file, or a BEIR folder (with corpus.jsonl).")
            if not os.path.exists(self.path):
                raise InputError(f"{self.path} does not exist.")
        if self.format is None:
            suffix = Path(self.path).suffix.lower()
            if suffix not in _FORMATS:
                what = "the standard input has no name to tell its format" if self.path == "-" else repr(self.path)
                raise InputError(
                    f"Unknown input format: {what}. Name the file {', '.join(_FORMATS)}, or say which format it is: "
                    f"{', '.join(get_args(InputFormat))}."
                )
            object.__setattr__(self, "format", _FORMATS[suffix])
        if self.format not in get_args(InputFormat):
            raise InputError(f"format={self.format!r}: give one of {', '.join(get_args(InputFormat))}.")
        if self.format == "parquet" and not self.is_file:
            raise InputError("Parquet can be read from a file only, because its index stands at the end.")

    @property
    def name(self) -> str:
        """Name for messages."""
        return "standard input" if self.path == "-" else self.path

    @property
    def is_file(self) -> bool:
        """Whether the input can be read twice; a pipe cannot."""
        return self.path != "-" and stat.S_ISREG(os.stat(self.path).st_mode)

    @property
    def size(self) -> int | None:
        """Bytes of the file; None for a pipe."""
        return os.stat(self.path).st_size if self.is_file else None

    def header(self) -> list[str]:
        """Names of the columns, where a file says them apart from its rows (parquet); otherwise none.

        Raises:
            InputError: If the file cannot be read.
        """
        if self.format != "parquet":
            return []
        import pyarrow.parquet as pq

        with self._as_parquet():
            return list(pq.read_schema(self.path).names)

    def read(self, columns: Collection[str] | None = None) -> Iterator[Row]:
        """Read the rows.

        Args:
            columns: Columns that are wanted; a format that can leave out the others does. None is all.

        Yields:
            Where each row stands, and its columns or what is wrong with it.

        Raises:
            InputError: If the whole file cannot be read.
        """
        if self.format == "parquet":
            yield from self._parquet_rows(columns)
            return
        with self._opened() as stream:
            lines = _Lines(stream)
            if self.format == "csv":
                yield from self._csv_rows(lines)
            else:
                yield from self._line_rows(lines)

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        if self.path == "-":
            yield sys.stdin.buffer
            return
        try:
            stream = open(self.path, "rb")
        except OSError as error:
            raise InputError(f"Cannot read {self.path}: {error.strerror}.") from error
        with stream:
            yield stream

    def _line_rows(self, lines: _Lines) -> Iterator[Row]:
        while True:
            try:
                line = next(lines)
            except StopIteration:
                return
            except UnicodeDecodeError as error:
                yield f"line {lines.number}", _not_utf8(error)
                continue
            where = f"line {lines.number}"
            if self.format == "text":
                yield where, {self.text_column: line.removesuffix("\n").removesuffix("\r")}
            elif line.strip():
                yield where, _json_object(line)

    def _csv_rows(self, lines: _Lines) -> Iterator[Row]:
        csv.field_size_limit(max(csv.field_size_limit(), _CSV_FIELD_CHARACTERS))
        reader = csv.reader(lines, strict=True)
        header: list[str] | None = None
        while True:
            start = lines.number + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except (csv.Error, UnicodeDecodeError) as error:
                what = _not_utf8(error) if isinstance(error, UnicodeDecodeError) else f"malformed CSV ({error})."
                if header is None:
                    raise InputError(f"{self.name}, line {start}: {what}") from error
                yield f"line {start}", what
                continue
            if not cells:
                continue
            if header is None:
                header = cells
                self._check_header(header)
            elif len(cells) != len(header):
                yield f"line {start}", f"{len(cells)} fields where the header has {len(header)}."
            else:
                yield f"line {start}", dict(zip(header, cells, strict=True))

    def _parquet_rows(self, columns: Collection[str] | None) -> Iterator[Row]:
        import pyarrow.parquet as pq

        with self._as_parquet(), pq.ParquetFile(self.path) as file:
            names = file.schema_arrow.names
            self._check_header(names)
            wanted = [name for name in names if columns is None or name in columns]
            row = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=wanted):
                for values in batch.to_pylist():
                    row += 1
                    yield f"row {row}", values

    @contextmanager
    def _as_parquet(self) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"Cannot read {self.path} as parquet: {' '.join(str(error).split())}") from error

    def _check_header(self, names: Sequence[str]) -> None:
        """Refuse the columns of a file that tells them before its rows."""
        repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if repeated:
            raise InputError(f"{self.name} has {names.count(repeated[0])} columns {repeated[0]!r}: rename all but one.")


class _Lines:
    """Decoded lines with their ends. Goes on behind a line that is not UTF-8, which a generator could not."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._stream)
        self.number += 1
        return line.decode("utf-8-sig" if self.number == 1 else "utf-8")


def _json_object(line: str) -> Mapping[str, object] | str:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg} at character {error.pos + 1}). Each line must be one JSON object."
    except (ValueError, RecursionError) as error:
        return f"not JSON that can be read ({error})."
    return value if isinstance(value, dict) else f"a JSON {type_name(value)}, where each line must be a JSON object."


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 (byte 0x{error.object[error.start]:02x}). Convert the file to UTF-8."


def type_name(value: object) -> str:
    """Type of a value, for messages; None is null."""
    return "null" if value is None else type(value).__name__


def column_names(names: Iterable[object]) -> str:
    """Names of columns, for messages."""
    found = list(map(repr, names))
    return ", ".join(found[:12]) + (", ..." if len(found) > 12 else "") if found else "(none)"
