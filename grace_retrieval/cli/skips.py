"""Bad rows that are skipped: counted, and the first ones shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from grace_retrieval.cli.console import error_console
from grace_retrieval.corpus.document import Document
from grace_retrieval.errors import InputError

__all__ = ["Skips"]

SHOWN_SKIPS = 5


class Skips:
    """Counts bad rows that are skipped, and shows the first ones.

    Args:
        name: Name of the input.
    """

    def __init__(self, *, name: str) -> None:
        self.name = name
        self.count = 0
        self._shown = SHOWN_SKIPS
        self._first: InputError | None = None

    def __call__(self, problem: InputError) -> None:
        """Skip a row."""
        self.count += 1
        self._first = self._first or problem
        if self.count <= self._shown:
            more = " More are counted only." if self.count == self._shown else ""
            error_console().print(f"Warning: skipped {problem}{more}", style="yellow")

    def checked(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Let documents pass, and refuse an input of which none is left: most likely a column was misnamed.

        Raises:
            InputError: If all rows were skipped.
        """
        rows = 0
        for document in documents:
            rows += 1
            yield document
        if self._first is not None and not rows:
            raise InputError(f"All {self.count:,} rows of {self.name} are bad. The first: {self._first}")
