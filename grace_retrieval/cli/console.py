"""How the command line speaks: results on stdout; progress, warnings and errors on stderr."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from grace_retrieval.advice import command_options
from grace_retrieval.cli.logs import JsonLines, json_lines_wanted, start_logging
from grace_retrieval.cli.plugins import load_plugin, plugin_names
from grace_retrieval.errors import GraceError

__all__ = [
    "GraceGroup",
    "Interrupted",
    "error_console",
    "is_interactive",
    "print_indented",
    "print_json",
    "result_console",
    "status",
]

PIPED_WIDTH = 100


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a message that says what is kept."""


class GraceGroup(TyperGroup):
    """The command group: adds commands of other packages, and turns errors into one line and an exit status."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of our own commands, then of those that other packages add."""
        return [*super().list_commands(ctx), *plugin_names()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by its name; one of another package is imported now."""
        return super().get_command(ctx, cmd_name) or load_plugin(cmd_name)

    def resolve_command(self, ctx: Any, args: Any) -> Any:
        """Find the command of a line, and tell advice in messages which options it has."""
        name, command, rest = super().resolve_command(ctx, args)
        leaf: Any = command
        words = list(rest)
        while isinstance(leaf, TyperGroup) and words and (inner := leaf.get_command(ctx, words.pop(0))):
            leaf = inner
        ctx.with_resource(command_options({name for option in leaf.params for name in option.opts}))
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Args:
            ctx: Context of the command line.

        Returns:
            What the command returns.

        Raises:
            typer.Exit: With status 1 for an error of ours and 130 for Ctrl-C.
        """
        start_logging(verbose=bool(ctx.params.get("verbose")), json_lines=bool(ctx.params.get("json_log")))
        try:
            with _plain_warnings(all_kinds=bool(ctx.params.get("debug"))):
                return super().invoke(ctx)
        except GraceError as error:
            if ctx.params.get("debug"):
                raise
            error_console().print(Text(f"Error: {_one_line(error)}", style="red"))
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            if ctx.params.get("debug"):
                raise
            error_console().print(str(error) or "Interrupted. Rationales that reached the cache are kept.")
            raise typer.Exit(130) from error


def result_console(*, width: int = PIPED_WIDTH) -> Console:
    """A console on stdout: at most `width` columns on a terminal, and just as many in a pipe."""
    console = Console(highlight=False, emoji=False, markup=False)
    console.width = min(console.width, width) if console.is_terminal else width
    return console


def error_console() -> Console:
    """A console on stderr that breaks no lines; one of JSON lines where these are asked for."""
    if json_lines_wanted():
        return JsonLines(stderr=True, highlight=False, emoji=False, markup=False, soft_wrap=True)
    return Console(stderr=True, highlight=False, emoji=False, markup=False, soft_wrap=True)


def is_interactive() -> bool:
    """Whether progress can be shown."""
    return error_console().is_terminal


def print_indented(console: Console, text: Text, indent: int) -> None:
    """Print a text wrapped and indented, without the trailing blanks that rich pads with.

    Args:
        console: Where to.
        text: The text.
        indent: Columns on the left.
    """
    for line in text.wrap(console, max(20, console.width - indent)):
        line.rstrip()
        console.print(Text(" " * indent) + line, soft_wrap=True)


@contextmanager
def status(text: str, *, show: bool = True) -> Iterator[None]:
    """Show a spinner on a terminal while a block runs.

    Args:
        text: What is going on.
        show: False shows nothing.
    """
    if not show or not is_interactive():
        yield
        return
    with error_console().status(text):
        yield


def print_json(value: object) -> None:
    """Print one JSON document."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)
    typer.echo(text)


@contextmanager
def _plain_warnings(*, all_kinds: bool) -> Iterator[None]:
    """Print warnings as lines, and leave out those that are meant for developers unless all are wanted."""
    with warnings.catch_warnings():
        if not sys.warnoptions and not all_kinds:
            for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)

        def show(message: Warning | str, *_: object, **__: object) -> None:
            error_console().print(Text(f"Warning: {_one_line(message)}", style="yellow"))

        warnings.showwarning = show
        yield


def _one_line(message: object) -> str:
    return " ".join(str(message).split())
