"""Tables of text: CSV, and tables with tabs between as MS MARCO has them."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator

from grace_retrieval.corpus.row import Row, RowSource, column_names
from grace_retrieval.corpus.streams import Lines, not_utf8, opened
from grace_retrieval.errors import InputError

__all__ = ["csv_rows", "tsv_rows"]

_CSV_FIELD_CHARACTERS = 1 << 27
"""Most characters of a value in a CSV file: a quote that is never closed must not draw the rest into memory."""


def csv_rows(source: RowSource, columns: Collection[str] | None) -> Iterator[Row]:
    """Rows of a CSV file with a header; see `Reader`. All values are text.

    Raises:
        InputError: If the file cannot be read, or its header is malformed.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _CSV_FIELD_CHARACTERS))
    with opened(source.path) as stream:
        lines = Lines(stream)
        reader = csv.reader(lines, strict=True)
        header: list[str] | None = None
        while True:
            start = lines.number + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except (csv.Error, UnicodeDecodeError) as error:
                what = not_utf8(error) if isinstance(error, UnicodeDecodeError) else f"malformed CSV ({error})."
                if header is None:
                    raise InputError(f"{source.name}, line {start}: {what}") from error
                yield f"line {start}", what
                continue
            if not cells:
                continue
            if header is None:
                header = cells
                source.check_header(header)
            elif len(cells) != len(header):
                yield f"line {start}", f"{len(cells)} fields where the header has {len(header)}."
            else:
                yield f"line {start}", dict(zip(header, cells, strict=True))


def tsv_rows(source: RowSource, columns: Collection[str] | None) -> Iterator[Row]:
    """Rows of a table with tabs between its fields; see `Reader`. A quote is a character like any other.

    A first line that names the column of the texts is a header. Otherwise there is none, and the columns are those of
    MS MARCO: id and text (collection.tsv, queries.tsv), or id, url, title and text (its documents).

    Raises:
        InputError: If the file cannot be read, or the columns are not known.
    """
    header: list[str] | None = None
    with opened(source.path) as stream:
        for where, line in Lines(stream).decoded():
            if isinstance(line, UnicodeDecodeError):
                if header is None:
                    raise InputError(f"{source.name}, {where}: {not_utf8(line)}") from line
                yield where, not_utf8(line)
                continue
            cells = line.removesuffix("\n").removesuffix("\r").split("\t")
            if not line.strip():
                continue
            if header is None:
                named = source.text_column in cells and all(cell.isidentifier() for cell in cells)
                header = cells if named else _msmarco(source, cells, where)
                source.check_header(header)
                if named:
                    continue
            if len(cells) != len(header):
                yield where, f"{len(cells)} fields where the table has {len(header)}."
            else:
                yield where, dict(zip(header, cells, strict=True))


def _msmarco(source: RowSource, cells: list[str], where: str) -> list[str]:
    names = {2: ["id", "text"], 4: ["id", "url", "title", "text"]}.get(len(cells))
    if names is None:
        raise InputError(
            f"{source.name}, {where}: {len(cells)} fields, none of which is {source.text_column!r}: "
            f"{column_names(cell[:30] for cell in cells)}. Without a line of names a table has 2 fields (id, text) or "
            "4 (id, url, title, text), as those of MS MARCO; name the columns in the first line, or the text column."
        )
    return names
