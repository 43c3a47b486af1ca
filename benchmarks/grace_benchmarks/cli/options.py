"""Options that the commands share, and how a row is shown while a run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grace_benchmarks.record import read_rows
from grace_retrieval.cli.console import error_console
from grace_retrieval.errors import InputError

if TYPE_CHECKING:
    from grace_benchmarks.record import Row

__all__ = ["NewRows", "OutOption", "QuietOption", "RunOption", "ThreadsOption", "WorkOption", "say_row", "whole"]

OutOption = Annotated[
    Path, typer.Option("--out", help="Folder of the rows; a run goes on from what it holds.", file_okay=False)
]
WorkOption = Annotated[
    Path | None,
    typer.Option("--work", help="Folder of vectors and ground truth.", show_default="bench in the cache folder"),
]
RunOption = Annotated[
    int,
    typer.Option("--run-number", "--run", min=1, help="Number of this run: another number measures everything again."),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads.", show_default="the suite's, or 1")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and warnings only.")]


def whole(text: str, what: str) -> int:
    """A whole number that may be written like 5e6.

    Args:
        text: What was given.
        what: Name of the option, for the message.

    Raises:
        InputError: If it is no whole number.

    Example:
        >>> whole("5e6", "--n")
        5000000
    """
    try:
        value = float(text.replace(",", "").replace("_", ""))
    except ValueError:
        value = 0.5
    if not value.is_integer() or value < 1:
        raise InputError(f"{what} {text!r}: give a positive whole number such as 100000 or 1e5.")
    return int(value)


def say_row(row: Row) -> None:
    """Show a new row on stderr, in a line."""
    kind = row["kind"]
    if row["status"] == "failed":
        name = row.get("factory") or row.get("task") or row.get("model")
        error_console().print(f"{name} {row.get('search', '')}: failed: {row['failed']}", style="yellow")
        return
    if kind == "ann":
        text = (
            f"{row['data']['n']:>10,}  {row['factory']} {row['search']}: recall@{row['k']} {row['recall']:.3f}, "
            f"{row['single_qps']:,.0f} queries/s one by one, {row['batch_qps']:,.0f} in a batch, "
            f"{row['bytes_per_vector']:,.0f} bytes a vector"
        )
    elif kind == "retrieval":
        text = f"{row['data']['name']}  {row['model']}, {row['column']}: nDCG@10 {row['nDCG@10']:.3f}"
    elif kind == "task":
        text = f"{row['task']}  {row['model']}, {row['column']}: {row['main_score']:.4f}"
    else:
        state = "" if row["cache"] == "none" else f", cache {row['cache']}"
        text = (
            f"{row['model']}, {row['max_new_tokens']} tokens, {row['pipeline']}"
            f"{' (single)' if row['single'] else ''}{state}: "
            f"{row['texts_per_second']:,.1f} texts/s, {row['ratio_wall']:.2f} times the straightforward pipeline"
        )
    error_console().print(text)


class NewRows:
    """Shows new rows, and tells in the end whether there were any that measured something.

    Args:
        quiet: Whether to show nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self._failed: list[Row] = []
        self._measured = 0

    def __call__(self, row: Row) -> None:
        """Take a new row."""
        if row["status"] == "failed":
            self._failed.append(row)
        else:
            self._measured += 1
        if not self.quiet:
            say_row(row)

    def said(self, finished: int, path: Path) -> None:
        """Say where the rows are.

        Args:
            finished: Rows that were there already.
            path: Their file.

        Raises:
            InputError: If every row failed: of this run, or of the file.
        """
        there = read_rows(path) if finished and path.exists() else []
        failed = self._failed or [row for row in there if row.get("status") == "failed"]
        if failed and not self._measured and (self._failed or len(failed) == len(there)):
            raise InputError(
                f"Nothing was measured: all {len(failed)} rows in {path} failed, the first with: {failed[0]['failed']}"
            )
        self._failed, self._measured = [], 0
        if not self.quiet:
            earlier = f" ({finished} rows were there already)" if finished else ""
            typer.echo(f"Rows in {path}{earlier}. Look at them with: grace bench report {path.parent}")
