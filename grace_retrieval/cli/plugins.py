"""Commands that other packages of this distribution add, found by entry point: the core imports none of them.

A package names a `typer.Typer` under the entry point group `grace_retrieval.commands`.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution
from typing import Any

import typer

__all__ = ["load_plugin", "plugin_names"]

GROUP = "grace_retrieval.commands"


def plugin_names() -> list[str]:
    """Names of the commands; nothing is imported."""
    return sorted(_entries())


def load_plugin(name: str) -> Any:
    """Import a command.

    Args:
        name: Name of the command.

    Returns:
        The command, or None if there is none of that name.
    """
    entry = _entries().get(name)
    if entry is None:
        return None
    command = typer.main.get_command(entry.load())
    command.name = name
    return command


@cache
def _entries() -> dict[str, EntryPoint]:
    # This distribution alone: reading the metadata of all of them would take longer than everything else.
    try:
        found = distribution("grace-retrieval").entry_points.select(group=GROUP)
    except PackageNotFoundError:
        return {}
    return {entry.name: entry for entry in found}
