"""JSON: an object a line, or one file that is a list of objects or a single one (as Anserini's collections are)."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterator, Mapping

from grace_retrieval.corpus.row import Row, RowSource, type_name
from grace_retrieval.corpus.streams import Lines, not_utf8, opened
from grace_retrieval.errors import InputError

__all__ = ["json_rows", "jsonl_rows"]

_READ_CHARACTERS = 1 << 16
_JSON_CHARACTERS = 1 << 27
"""Most characters of one object in a list: a bracket that is never closed must not draw the rest into memory."""


def jsonl_rows(source: RowSource, columns: Collection[str] | None) -> Iterator[Row]:
    """An object a line; see `Reader`. Blank lines are left out.

    Raises:
        InputError: If the file cannot be read.
    """
    with opened(source.path) as stream:
        for where, line in Lines(stream).decoded():
            if isinstance(line, UnicodeDecodeError):
                yield where, not_utf8(line)
            elif line.strip():
                yield where, _object(line)


def json_rows(source: RowSource, columns: Collection[str] | None) -> Iterator[Row]:
    """The objects of a file, one after the other: those of a list, or those that stand there without one.

    A file is never in memory as a whole; an object is.

    Raises:
        InputError: If the file cannot be read, or is not JSON; line and column are named.
    """
    with opened(source.path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            for number, value in enumerate(_Values(text, source), 1):
                found = value if isinstance(value, dict) else f"a JSON {type_name(value)}, not a JSON object."
                yield f"row {number}", found
        finally:
            text.detach()  # which would close the standard input


class _Values:
    """JSON values of a stream, decoded one by one."""

    def __init__(self, stream: io.TextIOWrapper, source: RowSource) -> None:
        self._stream = stream
        self._source = source
        self._text = ""
        self._place = 0
        self._line, self._column = 1, 1
        self._ended = False

    def __iter__(self) -> Iterator[object]:
        in_list = self._next_character() == "["
        if in_list:
            self._skip(1)
        while character := self._next_character():
            if in_list and character == "]":
                self._skip(1)
                if self._next_character():
                    raise self._problem("text behind the end of the list")
                return
            yield self._value()
            if in_list and self._next_character() not in (",", "]"):
                raise self._problem("no comma or end of the list")
            if in_list and self._next_character() == ",":
                self._skip(1)
        if in_list:
            raise self._problem("the list has no end")

    def _value(self) -> object:
        decoder = json.JSONDecoder()
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._place)
            except (ValueError, RecursionError) as error:
                if not self._ended and len(self._text) - self._place < _JSON_CHARACTERS:
                    self._more()
                    continue
                what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                self._skip(error.pos - self._place if isinstance(error, json.JSONDecodeError) else 0)
                raise self._problem(what) from error
            if end == len(self._text) and not self._ended:  # a number may go on behind what was read
                self._more()
                continue
            self._skip(end - self._place)
            return value

    def _next_character(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            rest = self._text[self._place :]
            self._skip(len(rest) - len(rest.lstrip()))
            if self._place < len(self._text) or self._ended:
                return self._text[self._place : self._place + 1]
            self._more()

    def _more(self) -> None:
        """Read on; twice as much for a value that is long, so that it is not decoded again too often."""
        self._text = self._text[self._place :]
        self._place = 0
        try:
            read = self._stream.read(max(_READ_CHARACTERS, len(self._text)))
        except UnicodeDecodeError as error:
            raise InputError(f"{self._source.name}: {not_utf8(error)}") from error
        self._text += read
        self._ended = not read

    def _skip(self, count: int) -> None:
        passed = self._text[self._place : self._place + count]
        if breaks := passed.count("\n"):
            self._line += breaks
            self._column = len(passed) - passed.rindex("\n")
        else:
            self._column += count
        self._place += count

    def _problem(self, what: str) -> InputError:
        return InputError(
            f"{self._source.name}, line {self._line}, column {self._column}: not JSON ({what}). Give a list of "
            "objects, or an object a line."
        )


def _object(line: str) -> Mapping[str, object] | str:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg} at character {error.pos + 1}). Each line must be one JSON object."
    except (ValueError, RecursionError) as error:
        return f"not JSON that can be read ({error})."
    return value if isinstance(value, dict) else f"a JSON {type_name(value)}, where each line must be a JSON object."
