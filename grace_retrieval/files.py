"""Deprecated: files are read by `grace_retrieval.corpus.files`. This module goes with the next release."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from grace_retrieval.corpus.files import TextSource as _TextSource
from grace_retrieval.errors import InputError

__all__ = ["Record", "TextSource"]

warnings.warn(
    "grace_retrieval.files.TextSource is now grace_retrieval.corpus.files.TextSource, and its records() documents().",
    DeprecationWarning,
    stacklevel=2,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One text of an input.

    Attributes:
        id: Its id, or its place in the input (from 0) if the input has no ids.
        text: The text; with a title: title, blank line, text.
    """

    id: str
    text: str


class TextSource(_TextSource):
    """A file of texts and how to read it."""

    def records(self, on_bad: Callable[[InputError], None] | None = None) -> Iterator[Record]:
        """Texts with their titles in front; see `grace_retrieval.corpus.files.TextSource.documents`."""
        for document in self.documents(on_bad):
            yield Record(id=document.id, text=document.embedded_text)
