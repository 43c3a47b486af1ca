"""A row of a file, and what readers need to know of the file they read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

__all__ = ["Reader", "Row", "RowSource", "column_names", "type_name"]

Row = tuple[str, Mapping[str, object] | str]
"""Where a row stands, such as "line 7", and its columns or what is wrong with it."""


class RowSource(Protocol):
    """A file that a reader reads.

    Attributes:
        path: The file, or "-" for the standard input.
        text_column: Column of the texts.
    """

    @property
    def path(self) -> str:
        """The file."""
        ...

    @property
    def text_column(self) -> str:
        """Column of the texts."""
        ...

    @property
    def name(self) -> str:
        """Name for messages."""
        ...

    def check_header(self, names: Sequence[str]) -> None:
        """Refuse the columns of a file that tells them before its rows."""
        ...

    def check_types(self, types: Mapping[str, str]) -> None:
        """Refuse columns whose types, which a file tells before its rows, are not those of texts or ids."""
        ...


class Reader(Protocol):
    """Reads the rows of one format."""

    def __call__(self, source: RowSource, columns: Collection[str] | None) -> Iterator[Row]:
        """Read the rows.

        Args:
            source: The file.
            columns: Columns that are wanted; a format that can leave out the others does. None is all.
        """
        ...


def type_name(value: object) -> str:
    """Type of a value, for messages; None is null."""
    return "null" if value is None else type(value).__name__


def column_names(names: Iterable[object]) -> str:
    """Names of columns, for messages."""
    found = list(map(repr, names))
    return ", ".join(found[:12]) + (", ..." if len(found) > 12 else "") if found else "(none)"
