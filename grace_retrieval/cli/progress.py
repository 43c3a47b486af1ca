"""Progress counted in texts: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from grace_retrieval.cli.console import Interrupted, error_console, is_interactive

__all__ = ["TextProgress", "duration", "going_on"]

LINE_SECONDS = 30.0


class TextProgress:
    """Shows on stderr how many texts are done, at what rate, and the time left.

    Args:
        total: Number of texts; None if it is not known.
        quiet: Whether to show nothing.
    """

    def __init__(self, *, total: int | None, quiet: bool = False) -> None:
        self.total = total
        self.done = 0
        self._before = 0
        self._started = self._spoke = time.monotonic()
        self._lines = not quiet and not is_interactive()
        self._bar: Progress | None = None
        if not quiet and not self._lines:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _RateColumn(),
                TimeRemainingColumn(),
                console=error_console(),
                transient=True,
            )
            self._task = self._bar.add_task("Embedding", total=total)

    def __enter__(self) -> TextProgress:
        """Show the bar."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def expect(self, total: int) -> None:
        """Set the number of texts, where it was not known at first."""
        self.total = total
        if self._bar is not None:
            self._bar.update(self._task, total=total)

    def advance(self, count: int = 1) -> None:
        """Count texts as done."""
        self.reach(self.done + count)

    def reach(self, done: int) -> None:
        """Set how many texts are done."""
        self.done = done if self.total is None else min(done, self.total)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)
        elif self._lines and time.monotonic() - self._spoke >= LINE_SECONDS:
            self._spoke = time.monotonic()
            error_console().print(self.line())

    def resume(self, done: int) -> None:
        """Set how many texts were done by an earlier run, which count for no rate."""
        self.done = self._before = done
        self._started = time.monotonic()
        if self._bar is not None:
            self._bar.reset(self._task, completed=done)

    def line(self) -> str:
        """The progress as a line of text."""
        rate = (self.done - self._before) / max(time.monotonic() - self._started, 1e-9)
        if self.total is None:
            return f"{self.done:,} texts, {rate:.1f} texts/s"
        left = f", {duration((self.total - self.done) / rate)} left" if rate else ""
        return f"{self.done:,} of {self.total:,} texts, {rate:.1f} texts/s{left}"


class _RateColumn(ProgressColumn):
    """Texts a second."""

    def render(self, task: Task) -> Text:
        """Draw the rate."""
        return Text(f"{task.speed:.1f} texts/s" if task.speed else "")


@contextmanager
def going_on(build: Path) -> Iterator[None]:
    """Say on Ctrl-C what is kept.

    Args:
        build: Where finished shards are.

    Raises:
        Interrupted: On Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        if not build.is_dir():
            raise
        raise Interrupted(
            f"Interrupted. Finished shards are kept in {build}: the same command goes on from there."
        ) from None


def duration(seconds: float) -> str:
    """Seconds, minutes or hours as a text."""
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
