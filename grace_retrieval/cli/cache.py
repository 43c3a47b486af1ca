"""`grace cache`: look into the file that keeps rationales, copy it out, check it, empty it."""

from __future__ import annotations

import json as json_library
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from rich import box
from rich.table import Table

from grace_retrieval.cli.console import print_json, result_console
from grace_retrieval.cli.options import JsonOption
from grace_retrieval.cli.output import text_file
from grace_retrieval.errors import InputError

if TYPE_CHECKING:
    from grace_retrieval.cache import CacheStats, RationaleCache

__all__ = ["cache_app"]

PathOption = Annotated[
    str, typer.Option("--cache", help="The default cache, or a file or folder.", metavar="default|PATH")
]

cache_app = typer.Typer(help="Look into the rationale cache, export, verify or clear it.", no_args_is_help=True)


@cache_app.command("path")
def show_path(cache: PathOption = "default", json: JsonOption = False) -> None:
    """Print where the cache is."""
    path = _path(cache)
    if json:
        print_json({"path": str(path), "exists": path.exists()})
    else:
        typer.echo(str(path))


@cache_app.command("stats")
def show_stats(cache: PathOption = "default", json: JsonOption = False) -> None:
    """Show what the cache holds, by model, prompt and role."""
    path = _path(cache)
    with _opened(path) as store:
        found = store.stats()
    if json:
        content = asdict(found)
        for name in ("hits", "misses"):  # of this process, which asked for nothing
            del content[name]
        print_json({**content, "exists": path.exists()})
        return
    if not found.rows:
        typer.echo(f"The cache {path} is empty.")
        return
    console = result_console(width=200)
    console.print(_table(found, prompt_width=max(12, min(48, console.width - 76))))
    typer.echo(
        f"{found.rows:,} rationales, {_bytes(found.bytes)} of at most {_bytes(found.max_bytes)}, "
        f"{_date(found.oldest_created)} to {_date(found.newest_created)}, in {path} ({_bytes(found.file_bytes)})."
    )


@cache_app.command("export")
def export(
    output: Annotated[str, typer.Argument(metavar="OUT", help="A .jsonl file, or - for the standard output.")],
    cache: PathOption = "default",
    no_vectors: Annotated[bool, typer.Option("--no-vectors", help="Leave the vectors out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
    json: JsonOption = False,
) -> None:
    """Copy the cache into JSON lines, one a rationale, oldest first."""
    path = _path(cache)
    if not path.exists():
        raise InputError(f"There is no cache at {path}: nothing to export. See --cache.")
    if json and output == "-":
        raise InputError("--json reports on stdout, where the lines would go: give a file, or leave out --json.")
    count = 0
    with _opened(path) as store, _written(output, overwrite=overwrite) as stream:
        for key, fingerprint, row, created in store.rows():
            line: dict[str, object] = {
                "key": key.hex(),
                "fingerprint": fingerprint.hex(),
                "created": created,
                "finish_reason": row.finish_reason,
                "rationale": row.text,
                "token_ids": row.token_ids,
            }
            if not no_vectors:
                line["vector"] = row.vector.tolist()
            # ASCII only: a cut-off rationale may end in half a character.
            stream.write(json_library.dumps(line) + "\n")
            count += 1
    if json:
        print_json({"output": output, "rows": count})
    elif output != "-":
        typer.echo(f"Wrote {count:,} rationales to {output}.")


@cache_app.command("verify")
def verify(cache: PathOption = "default", json: JsonOption = False) -> None:
    """Read the whole cache and compare every checksum. Exit status 1 if something is wrong."""
    from grace_retrieval.cache import SQLiteCache

    path = _path(cache)
    # Not through open_cache, which refuses the damaged files that this is for.
    with SQLiteCache(path) as store:
        report = store.verify()
    if json:
        print_json({"path": str(path), "ok": report.ok, "rows": report.rows, "problems": list(report.problems)})
    else:
        for problem in report.problems:
            typer.echo(problem)
        what = "ok" if report.ok else f"{len(report.problems)} problems. `grace cache clear` starts anew"
        typer.echo(f"{path}: {report.rows:,} rationales read, {what}.")
    if not report.ok:
        raise typer.Exit(1)


@cache_app.command("clear")
def clear(
    cache: PathOption = "default",
    fingerprint: Annotated[
        str | None,
        typer.Option("--fingerprint", metavar="HEX", help="Clear only this one: its digest or the start of it."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonOption = False,
) -> None:
    """Remove rationales from the cache."""
    from grace_retrieval.cache import clear_cache

    path = _path(cache)
    digest = None if fingerprint is None else _digest(path, fingerprint)
    if path.exists() and not yes:
        what = "all rationales" if digest is None else f"the rationales of fingerprint {digest.hex()}"
        # Not typer.confirm, which writes to stdout as well.
        typer.echo(f"Remove {what} from {path}? [y/N] ", err=True, nl=False)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise InputError("Nothing was removed. Answer y, or give --yes.")
    count = clear_cache(path, digest)
    if json:
        print_json({"path": str(path), "removed": count})
    else:
        typer.echo(f"Removed {count:,} rationales from {path}.")


def _path(spec: str) -> Path:
    from grace_retrieval.cache import cache_path

    return cache_path(spec)


@contextmanager
def _opened(path: Path) -> Iterator[RationaleCache]:
    from grace_retrieval.cache import open_cache

    store = open_cache(path)
    if store is None:  # never for a path
        raise InputError(f"{path} is no cache.")
    try:
        yield store
    finally:
        store.close()


@contextmanager
def _written(output: str, *, overwrite: bool) -> Iterator[TextIO]:
    """A stream that becomes the file when all is written."""
    if output == "-":
        yield sys.stdout
        return
    with text_file(output, overwrite=overwrite) as stream:
        yield stream


def _digest(path: Path, text: str) -> bytes:
    """The fingerprint that a digest or its start means."""
    with _opened(path) as store:
        known = [group.digest for group in store.stats().by_fingerprint]
    found = [digest for digest in known if digest.startswith(text.lower())]
    if len(found) != 1 or len(text) < 4:
        there = ", ".join(digest[:12] for digest in known) or "(none)"
        many = "is not the start of exactly one" if len(text) >= 4 else "is too short to tell a"
        raise InputError(f"--fingerprint {text!r} {many} fingerprint in {path}. It holds: {there}.")
    return bytes.fromhex(found[0])


def _table(found: CacheStats, *, prompt_width: int) -> Table:
    table = Table(box=box.SIMPLE)
    for name in ("Fingerprint", "Model", "Role", "Prompt"):
        table.add_column(name, no_wrap=name != "Model", overflow="fold")
    for name in ("Rationales", "Size"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in found.by_fingerprint:
        about = group.description or {}
        prompt = " ".join(str(about.get("prompt", "")).split())
        table.add_row(
            group.digest[:12],
            Path(str(about.get("model") or "?")).name,
            str(about.get("role") or "(none)"),
            prompt if len(prompt) <= prompt_width else f"{prompt[: prompt_width - 1]}…",
            f"{group.rows:,}",
            _bytes(group.bytes),
        )
    return table


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def _date(seconds: float | None) -> str:
    return "?" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
