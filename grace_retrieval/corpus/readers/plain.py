"""Plain text, a text a line."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from grace_retrieval.corpus.row import Row, RowSource
from grace_retrieval.corpus.streams import Lines, not_utf8, opened
from grace_retrieval.errors import InputError

__all__ = ["text_rows"]


def text_rows(source: RowSource, columns: Collection[str] | None) -> Iterator[Row]:
    """A row a line, whose one column is that of the texts; see `Reader`.

    Raises:
        InputError: If the file cannot be read, or begins as TREC topics do.
    """
    first = True
    with opened(source.path) as stream:
        for where, line in Lines(stream).decoded():
            if isinstance(line, UnicodeDecodeError):
                yield where, not_utf8(line)
                continue
            if first and line.strip().lower() == "<top>":
                raise InputError(
                    f"{source.name}, {where}: these are TREC topics, not a text a line. Name the file .topics, or give "
                    "its format: trec-topics."
                )
            first = first and not line.strip()
            yield where, {source.text_column: line.removesuffix("\n").removesuffix("\r")}
