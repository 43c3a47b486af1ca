"""Texts of files with their ids and titles: which columns are what, and what is no text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from grace_retrieval.advice import advise
from grace_retrieval.corpus.document import Document, join_title
from grace_retrieval.corpus.formats import RowFile, column_names, type_name
from grace_retrieval.errors import InputError

__all__ = ["SourceRow", "TextSource"]

_ID_COLUMN = ("--id-column", "id_column")
_IDS = ("id", "_id")
"""Columns of ids that need not be named; the second is BEIR's, and of MongoDB, whose own ids are no strings."""
_CONTENTS = "contents"
"""What Anserini and Pyserini call the text."""


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """One row of an input.

    Attributes:
        place: Its place in the input, from 0.
        where: The same for messages, such as "line 7".
        id: Its id; None if the input has none.
        id_column: Column of the id; None without one.
        text: Its text.
        title: Its title; None without one.
        others: Other columns that were asked for.
    """

    place: int
    where: str
    id: str | None
    id_column: str | None
    text: str
    title: str | None
    others: dict[str, object]


@dataclass(frozen=True, kw_only=True)
class TextSource(RowFile):
    """A file of texts and how to read it.

    Args:
        path: A file, or "-" for the standard input.
        format: A name of `grace_retrieval.corpus.formats.FORMATS`. None goes by the file's name.
        text_column: Column or key of the texts. "text" is "contents" in rows that have only that, as Anserini's do.
            Plain text has none.
        id_column: Column of the ids: strings or whole numbers. None takes "id", or else "_id", if the first good row
            has one, and otherwise the row's place in the input; rows of both kinds do not go together.
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

    id_column: str | None = None
    title_column: str | None = None
    title_required: bool = True
    allow_empty: bool = False

    def __post_init__(self) -> None:
        """Check file and format before anything is read."""
        super().__post_init__()
        if self.format == "text" and (self.id_column or self.title_column):
            raise InputError("Plain text has no columns: leave out id and title column, or give JSON lines or CSV.")

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
        columns = None
        if others is not None:
            named = (self.title_column, *((self.id_column,) if settled else _IDS), *self._text_columns)
            columns = {name for name in (*named, *others) if name is not None}
        for place, (where, row) in enumerate(self.read(columns)):
            there = _id_column(row) if isinstance(row, Mapping) else None
            if not settled:
                id_column = there
            found = row if isinstance(row, str) else self._row(row, place, where, id_column, others)
            if isinstance(found, SourceRow):
                # A bad row that is skipped must not decide where the ids of all others come from.
                settled = True
                if there is not None and id_column is None:
                    # To skip it would skip all rows with ids; to go on would lose their ids.
                    raise InputError(
                        f"{self.name}, {where}: an {there!r}, where the rows before it have none. "
                        + advise(
                            "give every row an id or none",
                            ("name the id column ({}), which makes others bad rows", *_ID_COLUMN),
                        )
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
        text_column = next((name for name in self._text_columns if name in row), self.text_column)
        for option, column in (("text", text_column), ("id", id_column), ("title", self.title_column)):
            if column is not None and column not in row and (option != "title" or self.title_required):
                if option == "id" and self.id_column is None:
                    ways = advise("give every row an id", ("name another column of ids ({})", *_ID_COLUMN))
                    there = f"among its columns {column_names(row)}"
                    return f"no {id_column!r} {there}, where the rows before it have one. {ways}"
                way = (f"name the {option} column ({{}})", f"--{option}-column", f"{option}_column")
                return f"no {column!r} among its columns {column_names(row)}. {advise(way, 'add it')}"
        text, title = row[text_column], row.get(self.title_column) if self.title_column else None
        if not isinstance(text, str):
            return f"{text_column!r} is {type_name(text)}, not a string."
        if not isinstance(title, (str, type(None))):
            return f"{self.title_column!r} is {type_name(title)}, not a string or null."
        if not join_title(title, text).strip() and not self.allow_empty:
            return "the text is blank. " + advise(
                ("skip such rows ({})", "--skip-bad", "on_bad"),
                ("embed them as zeros ({})", "--allow-empty", "allow_empty=True"),
                "remove such rows",
            )
        name = row[id_column] if id_column else None
        if id_column and (isinstance(name, bool) or not isinstance(name, (str, int))):
            return f"{id_column!r} is {type_name(name)}, not a string or whole number."
        used = {text_column, self.title_column, id_column}
        found = SourceRow(
            place=place,
            where=where,
            id=None if id_column is None else str(name),
            id_column=id_column,
            text=text,
            title=title,
            others={key: row[key] for key in (row if others is None else others) if key in row and key not in used},
        )
        try:
            f"{found.id}{found.title}{found.text}".encode()
        except UnicodeEncodeError:
            return "a string holds half of a surrogate pair, which is no character. Replace it, e.g. by U+FFFD."
        return found

    @property
    def _text_columns(self) -> tuple[str, ...]:
        """Columns that may hold the text, the first that is there does."""
        return (self.text_column, _CONTENTS) if self.text_column == "text" else (self.text_column,)

    def check_header(self, names: Sequence[str]) -> None:
        """Refuse a file without the columns that are wanted, or with several of a name.

        Raises:
            InputError: If a column is missing, or comes twice.
        """
        text_column = next((name for name in self._text_columns if name in names), self.text_column)
        for option, column in (("text", text_column), ("id", self.id_column), ("title", self.title_column)):
            if option == "title" and not self.title_required and column not in names:
                continue
            if column is not None and names.count(column) != 1:
                count = "no column" if column not in names else f"{names.count(column)} columns"
                way = (f"name the {option} column ({{}})", f"--{option}-column", f"{option}_column")
                raise InputError(
                    f"{self.name} has {count} {column!r}, but {column_names(names)}. {advise(way, 'add it')}"
                )

    def check_types(self, types: Mapping[str, str]) -> None:
        """Refuse columns whose type no text, title or id can have: all rows would be bad.

        Raises:
            InputError: If there is such a column.
        """
        text_column = next((name for name in self._text_columns if name in types), self.text_column)
        id_column = self.id_column or ("id" if "id" in types else None)  # an "_id" of another type is metadata
        wanted = (("text", text_column), ("id", id_column), ("title", self.title_column))
        for option, column in wanted:
            allowed = ("string", "integer") if option == "id" else ("string", "null")
            if column is not None and column in types and types[column] not in allowed:
                what = "strings or whole numbers" if option == "id" else "strings"
                way = (f"name another {option} column ({{}})", f"--{option}-column", f"{option}_column")
                raise InputError(
                    f"{self.name}: column {column!r} is of type {types[column]}. {advise(f'give {what}', way)}"
                )


def _id_name(names: Collection[str]) -> str | None:
    return next((name for name in _IDS if name in names), None)


def _id_column(row: Mapping[str, object]) -> str | None:
    """The column of a row that is its id without being named."""
    name = _id_name(row)
    # MongoDB's own ids are objects; they are metadata.
    return None if name == "_id" and not isinstance(row["_id"], (str, int)) else name
