r"""Texts from files, one at a time: JSON lines, CSV, parquet or plain text. A file is never in memory as a whole.

Every complaint names file and line. Texts are kept byte for byte; only "\n" and "\r\n" end a line.
"""

from __future__ import annotations

import csv
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal, get_args

from grace_retrieval.corpus.document import Document, join_title
from grace_retrieval.errors import InputError

__all__ = ["CSV_FIELD_CHARACTERS", "SUFFIXES", "InputFormat", "SourceRow", "TextSource"]

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

CSV_FIELD_CHARACTERS = 1 << 27
"""Most characters of a value in a CSV file: a quote that is never closed must not draw the rest into memory."""
_PARQUET_ROWS = 1024

_Row = tuple[str, Mapping[str, object] | str]
"""Where a row stands, and its columns or what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """One row of an input.

    Attributes:
        place: Its place in the input, from 0.
        where: The same for messages, such as "line 7".
        id: Its id; None if the input has none.
        text: Its text.
        title: Its title; None without one.
        others: Other columns that were asked for.
    """

    place: int
    where: str
    id: str | None
    text: str
    title: str | None
    others: dict[str, object]


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """A file of texts and how to read it.

    Args:
        path: A file, or "-" for the standard input.
        format: "jsonl" (an object a line), "csv" (with a header), "parquet" or "text" (a text a line). None goes by
            the file's name.
        text_column: Column or key of the texts. Plain text has none.
        id_column: Column of the ids: strings or whole numbers. None takes "id" if the first good row has one, and
            otherwise the row's place in the input; rows of both kinds do not go together.
        title_column: Column of titles to put in front of the texts; null or blank ones are left out.
        title_required: Whether every row must have the title column. Without, a row that lacks it has no title.
        allow_empty: Whether blank texts are texts.

    Raises:
        InputError: If the file is missing, is a folder, or its format is unknown.

    Example:
        >>> source = TextSource(path="-", format="text")
        >>> source.is_file
        False
    """

    path: str
    format: InputFormat | None = None
    text_column: str = "text"
    id_column: str | None = None
    title_column: str | None = None
    title_required: bool = True
    allow_empty: bool = False

    def __post_init__(self) -> None:
        """Check file and format before anything is read."""
        if self.path != "-":
            if os.path.isdir(self.path):
                raise InputError(f"{self.path} is a folder: give one file.")
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
        if self.format == "text" and (self.id_column or self.title_column):
            raise InputError("Plain text has no columns: leave out id and title column, or give JSON lines or CSV.")

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

    def documents(self, on_bad: Callable[[InputError], None] | None = None) -> Iterator[Document]:
        """Read the texts in their order.

        Args:
            on_bad: Called with what is wrong with a row, which is then skipped. None raises it.

        Yields:
            One Document a row, without metadata; its id is its place in the input if the input has no ids.

        Raises:
            InputError: If a row is malformed, lacks a column, has no string for text, or is blank; or if the whole
                file cannot be read.
        """
        for row in self.rows(on_bad):
            name = str(row.place) if row.id is None else row.id
            yield Document(id=name, text=row.text, title=row.title, source=f"{self.name}, {row.where}")

    def check_first(self, *, skip_bad: bool = False, rows: int = 1000) -> None:
        """Read the first rows, to find a misnamed column before anything else is done. A pipe is left alone.

        Args:
            skip_bad: Whether bad rows are skipped.
            rows: Number of good rows.

        Raises:
            InputError: As in `documents`.
        """
        if self.is_file:
            for _ in islice(self.rows((lambda _: None) if skip_bad else None), rows):
                pass

    def rows(
        self, on_bad: Callable[[InputError], None] | None = None, *, others: Sequence[str] | None = ()
    ) -> Iterator[SourceRow]:
        """Read the rows in their order, with what else they hold.

        Args:
            on_bad: As in `documents`.
            others: Other columns to read, if a row has them; None reads all.

        Yields:
            One SourceRow a row.

        Raises:
            InputError: As in `documents`.
        """
        id_column, settled = self.id_column, self.id_column is not None
        for place, (where, row) in enumerate(self._rows(others)):
            has_id = isinstance(row, Mapping) and "id" in row
            if not settled:
                id_column = "id" if has_id else None
            found = row if isinstance(row, str) else self._row(row, place, where, id_column, others)
            if isinstance(found, SourceRow):
                # A bad row that is skipped must not decide where the ids of all others come from.
                settled = True
                if has_id and id_column is None:
                    # To skip it would skip all rows with ids; to go on would lose their ids.
                    raise InputError(
                        f"{self.name}, {where}: an 'id', where the rows before it have none. Give every row an id, or "
                        "none; or name the id column (--id-column), which makes rows without one bad rows."
                    )
                yield found
                continue
            problem = InputError(f"{self.name}, {where}: {found}")
            if on_bad is None:
                raise problem
            on_bad(problem)

    def _row(
        self,
        row: Mapping[str, object],
        place: int,
        where: str,
        id_column: str | None,
        others: Sequence[str] | None,
    ) -> SourceRow | str:
        """What a row holds, or what is wrong with it."""
        for option, column in (("text", self.text_column), ("id", id_column), ("title", self.title_column)):
            if column is not None and column not in row and (option != "title" or self.title_required):
                if option == "id" and self.id_column is None:
                    return (
                        f"no 'id' among its columns {_names(row)}, where the rows before it have one. Give every row "
                        "an id, or name another column of ids (--id-column)."
                    )
                return f"no {column!r} among its columns {_names(row)}. Name the {option} column (--{option}-column)."
        text, title = row[self.text_column], row.get(self.title_column) if self.title_column else None
        if not isinstance(text, str):
            return f"{self.text_column!r} is {_type(text)}, not a string."
        if not isinstance(title, (str, type(None))):
            return f"{self.title_column!r} is {_type(title)}, not a string or null."
        if not join_title(title, text).strip() and not self.allow_empty:
            return "the text is blank. Skip such rows (--skip-bad) or embed them as zeros (--allow-empty)."
        name = row[id_column] if id_column else None
        if id_column and (isinstance(name, bool) or not isinstance(name, (str, int))):
            return f"{id_column!r} is {_type(name)}, not a string or whole number."
        used = {self.text_column, self.title_column, id_column}
        found = SourceRow(
            place=place,
            where=where,
            id=None if id_column is None else str(name),
            text=text,
            title=title,
            others={key: row[key] for key in (row if others is None else others) if key in row and key not in used},
        )
        try:
            f"{found.id}{found.title}{found.text}".encode()
        except UnicodeEncodeError:
            return "a string holds half of a surrogate pair, which is no character. Replace it, e.g. by U+FFFD."
        return found

    def _rows(self, others: Sequence[str] | None) -> Iterator[_Row]:
        if self.format == "parquet":
            yield from self._parquet_rows(others)
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

    def _line_rows(self, lines: _Lines) -> Iterator[_Row]:
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

    def _csv_rows(self, lines: _Lines) -> Iterator[_Row]:
        csv.field_size_limit(max(csv.field_size_limit(), CSV_FIELD_CHARACTERS))
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

    def _parquet_rows(self, others: Sequence[str] | None) -> Iterator[_Row]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.path) as file:
                names = file.schema_arrow.names
                self._check_header(names)
                wanted = {
                    self.text_column,
                    self.title_column,
                    self.id_column or "id",
                    *(names if others is None else others),
                }
                columns = [name for name in names if name in wanted]
                row = 0
                for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=columns):
                    for values in batch.to_pylist():
                        row += 1
                        yield f"row {row}", values
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"Cannot read {self.path} as parquet: {' '.join(str(error).split())}") from error

    def _check_header(self, names: list[str]) -> None:
        for option, column in (("text", self.text_column), ("id", self.id_column), ("title", self.title_column)):
            if option == "title" and not self.title_required and column not in names:
                continue
            if column is not None and names.count(column) != 1:
                count = "no column" if column not in names else f"{names.count(column)} columns"
                raise InputError(
                    f"{self.name} has {count} {column!r}, but {_names(names)}. Name the {option} column "
                    f"(--{option}-column)."
                )


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
    return value if isinstance(value, dict) else f"a JSON {_type(value)}, where each line must be a JSON object."


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 (byte 0x{error.object[error.start]:02x}). Convert the file to UTF-8."


def _type(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _names(names: Iterable[object]) -> str:
    found = list(map(repr, names))
    return ", ".join(found[:12]) + (", ..." if len(found) > 12 else "") if found else "(none)"
