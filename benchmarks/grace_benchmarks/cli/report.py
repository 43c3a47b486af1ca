"""`grace bench report`: rows to a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grace_retrieval.errors import InputError

__all__ = ["report"]


def report(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FOLDER|FILE...", help="Result files, or folders of them.", show_default="bench-results"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of page and pictures.", show_default="report in the first folder"),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare the index rows of two folders or files instead.")
    ] = False,
) -> None:
    """Make one self-contained HTML page, and PNGs, from rows."""
    given = sources or [Path("bench-results")]
    if compare:
        from grace_benchmarks.cli.compare import print_agreement

        if len(given) != 2:
            raise InputError(f"--compare needs two folders or files; {len(given)} were given.")
        print_agreement(given[0], given[1])
        return
    from grace_benchmarks.report.page import write_report

    first = given[0] if given[0].is_dir() else given[0].parent
    typer.echo(f"Report: {write_report(given, out or first / 'report')}")
