"""Fields: the body of a request, read field by field, with errors that say what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grace_retrieval.rationale import RationaleMode
from grace_retrieval.serve.errors import EMPTY, TOO_LARGE, RequestError

__all__ = ["Fields", "check_count", "clean_text"]


class Fields:
    """A JSON object of a request.

    Args:
        body: What was sent.
        allowed: Names that it may have; others are refused, so that a misspelt option is not passed over.

    Raises:
        RequestError: If it is no object, or has other fields.
    """

    def __init__(self, body: Any, allowed: Sequence[str]) -> None:
        if not isinstance(body, dict):
            raise RequestError(f"The body is {_kind(body)}: send a JSON object with {', '.join(allowed)}.")
        if unknown := sorted(set(body) - set(allowed)):
            raise RequestError(
                f"Unknown field {unknown[0][:60]!r}: this route takes {', '.join(allowed)}.", param=unknown[0][:60]
            )
        self._body = body

    def __contains__(self, name: str) -> bool:
        """Whether a field was sent, and is not null."""
        return self._body.get(name) is not None

    def get(self, name: str) -> Any:
        """A field as it was sent; None if it was not."""
        return self._body.get(name)

    def choice(self, name: str, allowed: Sequence[str]) -> str | None:
        """A field that is one of some words; None if it was not sent."""
        value = self._body.get(name)
        if value is None or (isinstance(value, str) and value in allowed):
            return value
        raise RequestError(f"{name}={_shown(value)}: give {' or '.join(map(repr, allowed))}.", param=name)

    def flag(self, name: str) -> bool | None:
        """A field that is true or false; None if it was not sent."""
        value = self._body.get(name)
        if value is None or isinstance(value, bool):
            return value
        raise RequestError(f"{name}={_shown(value)}: give true or false.", param=name)

    def mode(self, name: str) -> RationaleMode | None:
        """A field that is true, false or "echo"; None if it was not sent."""
        return "echo" if self._body.get(name) == "echo" else self.flag(name)

    def whole(self, name: str, most: int, why: str) -> int | None:
        """A field that is a whole number from 1 to `most`; None if it was not sent.

        Args:
            name: Name of the field.
            most: Largest number.
            why: Where that comes from, for the message.
        """
        value = self._body.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise RequestError(f"{name}={_shown(value)}: give a whole number from 1 to {most} ({why}).", param=name)
        return value

    def text(self, name: str) -> str:
        """A field that must be there and be a string that is not blank."""
        value = self._body.get(name)
        if not isinstance(value, str):
            raise RequestError(f"{name} is {_kind(value)}: give a string.", param=name)
        if not value.strip():
            raise RequestError(f"{name} is blank: give some words.", EMPTY, param=name)
        return clean_text(value)

    def texts(self, name: str, most: int, option: str) -> list[str]:
        """A field that must be there: a string, or a list of strings that is not empty.

        Args:
            name: Name of the field.
            most: Most texts.
            option: Option of the server that sets it, for the message.
        """
        value = self._body.get(name)
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list):
            raise RequestError(f"{name} is {_kind(value)}: give a string or a list of strings.", param=name)
        check_count(name, len(found), most, option)
        for place, text in enumerate(found):
            if not isinstance(text, str):
                raise RequestError(f"{name}[{place}] is {_kind(text)}: give a string.", param=name)
        return [clean_text(text) for text in found]


def check_count(name: str, count: int, most: int, option: str) -> None:
    """Refuse an empty list and one that is too long.

    Raises:
        RequestError: If it is.
    """
    if not count:
        raise RequestError(f"{name} is an empty list: give at least one text.", EMPTY, param=name)
    if count > most:
        raise RequestError(
            f"{name} has {count} items, and this server takes {most} in a request ({option}): send several requests.",
            TOO_LARGE,
            param=name,
        )


def clean_text(text: str) -> str:
    """A text without lone surrogates, which JSON can spell and UTF-8 cannot; they become U+FFFD, as in `encode`."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "missing"
    names = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list"}
    return names.get(type(value), "an object")


def _shown(value: Any) -> str:
    """A value for a message, cut."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
