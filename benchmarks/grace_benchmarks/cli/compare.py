"""`grace bench report --compare`: do two runs agree?"""

from __future__ import annotations

from pathlib import Path

import typer
from rich import box
from rich.table import Table

from grace_retrieval.cli.console import result_console
from grace_retrieval.errors import InputError

__all__ = ["print_agreement"]


def print_agreement(first: Path, second: Path) -> None:
    """Print whether two runs found the same recall, and speeds whose ranges overlap.

    Args:
        first: Result file or folder of one run.
        second: Of the other.

    Raises:
        InputError: If they measured nothing in common.
    """
    from grace_benchmarks.ann.summary import agreement
    from grace_benchmarks.report.rows import collect

    entries = agreement(collect([first]), collect([second]))
    if not entries:
        raise InputError(f"{first} and {second} have no index rows in common.")
    table = Table("vectors", "index", "recall", "one by one", "in a batch", box=box.SIMPLE_HEAD)
    for entry in entries:
        table.add_row(
            f"{entry['n']:,}",
            f"{entry['factory']} {entry['search']}",
            "equal" if entry["recall_equal"] else "DIFFERS",
            *(
                f"x{entry[f'{kind}_ratio']:.2f}, {'ranges overlap' if entry[f'{kind}_overlap'] else 'APART'}"
                for kind in ("single", "batch")
            ),
        )
    result_console().print(table)
    equal = sum(entry["recall_equal"] for entry in entries)
    overlaps = sum(entry[f"{kind}_overlap"] for entry in entries for kind in ("single", "batch"))
    typer.echo(f"recall equal in {equal} of {len(entries)}; speed ranges overlap in {overlaps} of {2 * len(entries)}.")
