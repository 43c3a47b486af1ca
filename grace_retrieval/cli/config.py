"""`--config FILE`: options of a command in a YAML file, for commands that are given again and again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from grace_retrieval.errors import InputError
from grace_retrieval.near import did_you_mean

__all__ = ["ConfigOption"]


def _read(ctx: typer.Context, path: Path | None) -> Path | None:
    """Take options of a file as defaults: what is given on the command line, or by the environment, comes first.

    Raises:
        InputError: If the file is no mapping of options of this command; with names that are near.
    """
    if path is None:
        return None
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--config {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"--config {path}: give a mapping from options to values, such as 'text-column: body'.")
    known: dict[str, Any] = {}
    for option in ctx.command.params:
        names = [name.lstrip("-") for name in option.opts if name.startswith("--")]
        known |= dict.fromkeys(names or [str(option.name)], option)
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("_", "-")
        wanted = known.get(name) or known.get(name.replace("-", "_"))
        if wanted is None or name == "config":
            raise InputError(f"--config {path}: {key}={value!r}: no such option.{did_you_mean(name, known)}")
        several = getattr(wanted, "multiple", False) or wanted.nargs == -1
        found[str(wanted.name)] = [value] if several and not isinstance(value, list) else value
    ctx.default_map = {**(ctx.default_map or {}), **found}
    return path


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="YAML file with options of this command, such as 'text-column: body'; those given here come first.",
        is_eager=True,
        callback=_read,
        show_default=False,
    ),
]
