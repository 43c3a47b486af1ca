r"""Rows of files, one at a time, in the formats of the field. A file is never in memory as a whole.

A format is a reader and the names that tell it, in one table. Every complaint names file and line. Texts are kept byte
for byte; only "\n" and "\r\n" end a line.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from grace_retrieval.corpus.readers import arrow_files
from grace_retrieval.corpus.readers.json_files import json_rows, jsonl_rows
from grace_retrieval.corpus.readers.plain import text_rows
from grace_retrieval.corpus.readers.tables import csv_rows, tsv_rows
from grace_retrieval.corpus.readers.topics import topic_rows
from grace_retrieval.corpus.row import Reader, Row, column_names, type_name
from grace_retrieval.corpus.streams import PACKED, unpacked_name
from grace_retrieval.errors import InputError

__all__ = [
    "FOLDER_SUFFIXES",
    "FORMATS",
    "SUFFIXES",
    "FileFormat",
    "InputFormat",
    "Row",
    "RowFile",
    "column_names",
    "format_of",
    "type_name",
]

InputFormat = Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow", "text", "trec-topics", "datasets"]


@dataclass(frozen=True, kw_only=True)
class FileFormat:
    """A format of rows.

    Attributes:
        read: Reads the rows.
        suffixes: Ends of names that tell the format.
        schema: Columns of a file with an index of its own, from its path; None for what is read from its start on,
            and so from a pipe or a packed file, too.
        in_folders: Whether files that are named so are data wherever they lie. Others are given themselves.
        of: What is read, for messages.
    """

    read: Reader
    suffixes: tuple[str, ...] = ()
    schema: Callable[[str], Any] | None = None
    in_folders: bool = True
    of: str


FORMATS: dict[InputFormat, FileFormat] = {
    "jsonl": FileFormat(read=jsonl_rows, suffixes=(".jsonl", ".ndjson"), of="JSON lines, an object a line"),
    # Beside data there is often a .json that says something about it.
    "json": FileFormat(read=json_rows, suffixes=(".json",), in_folders=False, of="JSON, a list of objects"),
    "csv": FileFormat(read=csv_rows, suffixes=(".csv",), of="CSV with a header"),
    # In a folder of MS MARCO, queries and judgements lie beside the documents, and nothing tells which is which.
    "tsv": FileFormat(read=tsv_rows, suffixes=(".tsv",), in_folders=False, of="a table with tabs (MS MARCO)"),
    "parquet": FileFormat(
        read=arrow_files.parquet_rows,
        suffixes=(".parquet", ".pq"),
        schema=arrow_files.parquet_schema,
        of="parquet",
    ),
    "arrow": FileFormat(
        read=arrow_files.arrow_rows,
        suffixes=(".arrow", ".feather"),
        schema=arrow_files.arrow_schema,
        of="Arrow's IPC format",
    ),
    "text": FileFormat(read=text_rows, suffixes=(".txt", ".text"), of="a text a line"),
    "trec-topics": FileFormat(read=topic_rows, suffixes=(".topics",), in_folders=False, of="TREC topics"),
    "datasets": FileFormat(
        read=arrow_files.dataset_rows, schema=arrow_files.dataset_schema, of="a folder that datasets saved"
    ),
}
"""Every format, by its name."""

_BY_SUFFIX: dict[str, InputFormat] = {suffix: name for name, kind in FORMATS.items() for suffix in kind.suffixes}
SUFFIXES = tuple(_BY_SUFFIX)
"""Ends of file names that tell a format."""
FOLDER_SUFFIXES = tuple(suffix for kind in FORMATS.values() if kind.in_folders for suffix in kind.suffixes)
"""Those of them that are data wherever they lie in a folder."""


def format_of(path: str | Path) -> InputFormat | None:
    """The format that a name tells, or a folder's files; None if none does.

    Example:
        >>> format_of("collection.tsv.gz")
        'tsv'
    """
    if arrow_files.is_dataset(path):
        return "datasets"
    return _BY_SUFFIX.get(Path(unpacked_name(path)).suffix.lower())


@dataclass(frozen=True, kw_only=True)
class RowFile:
    """A file of rows.

    Args:
        path: A file, which may be packed (.gz, .zst), a folder that `datasets` saved, or "-" for the standard input.
        format: A name of `FORMATS`; None goes by the file's name.
        text_column: Column or key of the texts. Plain text has no other.

    Raises:
        InputError: If the file is missing, is a folder, or its format is unknown.
    """

    path: str
    format: InputFormat | None = None
    text_column: str = "text"

    def __post_init__(self) -> None:
        """Check file and format before anything is read."""
        is_dataset = False
        if self.path != "-":
            is_dataset = arrow_files.is_dataset(self.path)
            if os.path.isdir(self.path) and not is_dataset:
                raise InputError(f"{self.path} is a folder: give one file, or a folder that datasets saved.")
            if not os.path.exists(self.path):
                raise InputError(f"{self.path} does not exist.")
        if self.format is None:
            object.__setattr__(self, "format", self._told())
        if self.format not in FORMATS:
            raise InputError(f"format={self.format!r}: give one of {', '.join(get_args(InputFormat))}.")
        if (self.format == "datasets") != is_dataset:
            what = "is such a folder: leave out its format" if is_dataset else "is none"
            raise InputError(f"format={self.format!r} and folders that datasets saved: {self.name} {what}.")
        if self._kind.schema is not None and self.format != "datasets":
            kind = self.format.capitalize()
            if not self.is_file:
                raise InputError(f"{kind} can be read from a file only, because its index stands at the end.")
            if Path(self.path).suffix.lower() in PACKED:
                raise InputError(f"{self.path}: {kind} is packed in itself. Unpack the file.")

    @property
    def _kind(self) -> FileFormat:
        return FORMATS[self.format or "text"]

    def _told(self) -> InputFormat:
        """The format that the file's name tells."""
        if self.path != "-" and (found := format_of(self.path)) is not None:
            return found
        what = "the standard input has no name to tell its format" if self.path == "-" else repr(self.path)
        raise InputError(
            f"Unknown input format: {what}. Name the file {', '.join(SUFFIXES)} (or so with "
            f"{' or '.join(PACKED)} behind), or say which format it is: {', '.join(get_args(InputFormat))}."
        )

    @property
    def name(self) -> str:
        """Name for messages."""
        return "standard input" if self.path == "-" else self.path

    @property
    def is_file(self) -> bool:
        """Whether the input can be read twice; a pipe cannot."""
        return self.path != "-" and (self.format == "datasets" or stat.S_ISREG(os.stat(self.path).st_mode))

    @property
    def size(self) -> int | None:
        """Bytes of the file, or of a folder's files; None for a pipe."""
        if self.format == "datasets":
            return sum(file.stat().st_size for file in Path(self.path).iterdir())
        return os.stat(self.path).st_size if self.is_file else None

    def header(self) -> list[str]:
        """Names of the columns, where a file says them apart from its rows (parquet); otherwise none.

        Raises:
            InputError: If the file cannot be read.
        """
        return [] if self._kind.schema is None else list(self._kind.schema(self.path).names)

    def read(self, columns: Collection[str] | None = None) -> Iterator[Row]:
        """Read the rows.

        Args:
            columns: Columns that are wanted; a format that can leave out the others does. None is all.

        Yields:
            Where each row stands, and its columns or what is wrong with it.

        Raises:
            InputError: If the whole file cannot be read.
        """
        return self._kind.read(self, columns)

    def check_header(self, names: Sequence[str]) -> None:
        """Refuse the columns of a file that tells them before its rows.

        Raises:
            InputError: If a name comes twice.
        """
        repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if repeated:
            raise InputError(f"{self.name} has {names.count(repeated[0])} columns {repeated[0]!r}: rename all but one.")

    def check_types(self, types: Mapping[str, str]) -> None:
        """Refuse columns by their types, where a file tells them before its rows; of rows as such, any will do."""
