"""The command `grace`. Importing this loads no model library: commands import what they need."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from grace_retrieval import __version__
from grace_retrieval.cli.cache import cache_app
from grace_retrieval.cli.console import GraceGroup
from grace_retrieval.cli.demo import demo
from grace_retrieval.cli.embed import embed
from grace_retrieval.cli.explain import explain
from grace_retrieval.cli.fetch import fetch
from grace_retrieval.cli.index import index_app
from grace_retrieval.cli.rationale import rationale
from grace_retrieval.cli.report import report
from grace_retrieval.threads import wait_asleep

__all__ = ["app", "main"]

app = typer.Typer(
    name="grace",
    cls=GraceGroup,
    help="Text embeddings by language models that write a short rationale first, and show it.",
    epilog="Errors are one line; `grace --debug COMMAND ...` shows where they come from.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"grace-retrieval {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="GRACE_DEBUG", help="Show a traceback when something goes wrong.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", envvar="GRACE_VERBOSE", help="Say what is loaded, and how long it takes.")
    ] = False,
    json_log: Annotated[
        bool,
        typer.Option("--json-log", envvar="GRACE_JSON_LOG", help="Warnings, errors and logs as JSON lines on stderr."),
    ] = False,
) -> None:
    """Options of every command; `GraceGroup` reads them."""


app.command("demo")(demo)
app.command("embed")(embed)
app.command("rationale")(rationale)
app.command("explain")(explain)
app.command("report")(report)
app.command("fetch")(fetch)
app.add_typer(index_app, name="index")
app.add_typer(cache_app, name="cache")


def main() -> None:
    """Run the command line."""
    wait_asleep()
    for stream in (sys.stdout, sys.stderr):
        # A rationale may hold any character; a terminal that lacks it must not end the run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="grace")
