"""`grace bench ann --recommend`: an index, and the rows it rests on."""

from __future__ import annotations

import re
from pathlib import Path

import typer
from rich import box
from rich.table import Table

from grace_retrieval.cli.console import result_console
from grace_retrieval.errors import InputError

__all__ = ["parse_bytes", "print_recommendation"]

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def print_recommendation(n: int, dim: int, *, memory: str | None, recall: float, rows: Path | None) -> None:
    """Print an index for a size.

    Args:
        n: Vectors.
        dim: Dimensions.
        memory: Most memory, such as "16GB".
        recall: Least recall@10.
        rows: Result file that it rests on; None takes the rows of the package.
    """
    from grace_benchmarks.ann.summary import measured_rows
    from grace_benchmarks.record import read_rows
    from grace_retrieval.indexing.recommend import recommend_index

    found = recommend_index(
        n,
        dim,
        memory_bytes=None if memory is None else parse_bytes(memory),
        recall=recall,
        rows=None if rows is None else measured_rows(read_rows(rows)),
    )
    console = result_console()
    typer.echo(f"{found.factory}")
    typer.echo(f"search parameters: {found.search or '(none)'}; unit vectors, METRIC_L2")
    typer.echo(
        f"expected for {n:,} x {dim}: recall@10 {found.recall:.3f}, {found.qps:,.0f} queries/s one by one on one "
        f"thread, {found.memory_bytes / 2**30:,.2f} GiB"
    )
    for note in found.notes:
        typer.echo(f"beyond what was measured: {note}")
    table = Table("vectors", "dim", "recall@10", "queries/s", "bytes a vector", "build s", box=box.SIMPLE_HEAD)
    for row in found.rows:
        table.add_row(
            f"{row.n:,}",
            str(row.dim),
            f"{row.recall:.3f}",
            f"{row.qps:,.0f}",
            f"{row.bytes_per_vector:,.0f}",
            f"{row.build_seconds:,.1f}",
        )
    console.print(f"It rests on {len(found.rows)} measured rows of {found.rows[0].template}:")
    console.print(table)


def parse_bytes(text: str) -> float:
    """A size such as "16GB", "512 MiB" or a plain number of bytes; K, M, G and T are powers of 1024.

    Raises:
        InputError: If it is no size.

    Example:
        >>> parse_bytes("16GB") == 16 * 2**30
        True
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        raise InputError(f"--memory {text!r}: give a size such as 16GB, 512MB or a number of bytes.")
    return float(found[1]) * _UNITS[found[2].upper()]
