"""`grace index`: build an index of a corpus, look into it, search it, copy it out."""

from __future__ import annotations

import json as json_library
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from grace_retrieval.cli.console import print_json, status
from grace_retrieval.cli.index_build import add, build, delete
from grace_retrieval.cli.index_queries import (
    OverwriteRunOption,
    QueriesOption,
    QueryBatch,
    QueryFormatOption,
    QueryIdOption,
    QueryTextOption,
    RunFileOption,
    TagOption,
    hit_as_json,
    show_hits,
)
from grace_retrieval.cli.options import CacheOption, DeviceOption, IndexModelOption, JsonOption
from grace_retrieval.errors import InputError
from grace_retrieval.extras import require_extra

__all__ = ["index_app"]

index_app = typer.Typer(help="Build an index of a corpus, search it, verify it, copy it out.", no_args_is_help=True)
index_app.command("build")(build)
index_app.command("add")(add)
index_app.command("delete")(delete)

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the index.", show_default=False)]


class Target(str, Enum):
    """Stores an index can be copied to."""

    faiss = "faiss"
    lancedb = "lancedb"
    qdrant = "qdrant"


@index_app.command("info")
def info(folder: FolderArgument, json: JsonOption = False) -> None:
    """Show what an index holds and what it was made with."""
    from grace_retrieval.indexing.manifest import IndexManifest

    manifest = IndexManifest.read(folder)
    shards, faiss = manifest.shards, manifest.faiss
    facts: dict[str, Any] = {
        "index": str(folder),
        "documents": manifest.rows,
        "dimension": manifest.dimension,
        "model": manifest.identity.model if manifest.identity else None,
        "rationale": manifest.rationale,
        "identity": manifest.identity.digest() if manifest.identity else None,
        "blank": sum(len(shard.blank) for shard in shards),
        "shards": len(shards),
        "shard_bytes": sum(shard.bytes for shard in shards),
        "factory": faiss.factory,
        "faiss_bytes": faiss.bytes,
        "faiss_search": dict(faiss.search),
        "explanation": faiss.explanation,
        "generation": manifest.generation,
        "created": manifest.created,
        "package": manifest.package,
    }
    if json:
        print_json(facts)
        return
    for name, value in facts.items():
        typer.echo(f"{name.replace('_', ' '):14} {f'{value:,}' if isinstance(value, int) and value > 1 else value}")


@index_app.command("verify")
def verify(
    folder: FolderArgument,
    mend: Annotated[bool, typer.Option("--mend", help="Make the FAISS file again from the shards.")] = False,
    factory: Annotated[
        str | None, typer.Option("--factory", help="With --mend: FAISS factory string.", show_default="as it was")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Read the whole index and compare every checksum. Exit status 1 if something is wrong."""
    from grace_retrieval.indexing.commit import FaissOptions, check_faiss
    from grace_retrieval.indexing.manifest import IndexManifest
    from grace_retrieval.indexing.verification import mend_index, verify_index

    if factory and not mend:
        raise InputError("--factory goes with --mend.")
    if mend:
        options = FaissOptions(factory=factory) if factory else None
        there = IndexManifest.read(folder)
        # Before the shards are read, whose checksums take minutes.
        check_faiss(options or FaissOptions(), rows=there.rows, dimension=there.dimension)
        with status("Making the FAISS file ..."):
            mend_index(folder, options)
    with status("Reading ..."):
        report = verify_index(folder)
    if json:
        print_json(
            {
                "index": str(folder),
                "ok": report.ok,
                "documents": report.rows,
                "problems": list(report.problems),
                "notes": list(report.notes),
            }
        )
    else:
        for line in (*report.notes, *report.problems):
            typer.echo(line)
        what = "ok" if report.ok else f"{len(report.problems)} problems"
        typer.echo(f"{folder}: {report.rows:,} documents read, {what}.")
    if not report.ok:
        raise typer.Exit(1)


@index_app.command("search")
def search(
    folder: FolderArgument,
    query: Annotated[
        str | None, typer.Argument(metavar="QUERY", help="What is looked for.", show_default=False)
    ] = None,
    queries: QueriesOption = None,
    run: RunFileOption = None,
    tag: TagOption = None,
    format: QueryFormatOption = None,
    text_column: QueryTextOption = "text",
    id_column: QueryIdOption = None,
    overwrite: OverwriteRunOption = False,
    k: Annotated[int, typer.Option("--k", "-k", help="Most documents.")] = 10,
    filter: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="NAME=VALUE", help="Metadata that must be equal; may be repeated."),
    ] = None,
    hybrid: Annotated[bool, typer.Option("--hybrid", help="Fuse with BM25 by reciprocal rank.")] = False,
    model: IndexModelOption = None,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            metavar="NAME",
            help="What runs the model for queries, if not the engine that made the vectors.",
            show_default="that one",
        ),
    ] = None,
    cache: CacheOption = "default",
    device: DeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Search an index, for a query or for all of a file."""
    from grace_retrieval.cli.loading import open_command_cache, open_index

    batch = QueryBatch.of(
        query,
        queries,
        run=run,
        tag=tag,
        format=format,
        text_column=text_column,
        id_column=id_column,
        overwrite=overwrite,
        json=json,
    )
    wanted = _filter(filter or [])
    if k < 1:
        raise InputError(f"k={k}: give a positive whole number.")
    if hybrid:
        require_extra("bm25s", "bm25s", "0.2.10", extra="hybrid", purpose="Hybrid search")
    kept = open_command_cache(cache)
    try:
        index = open_index(folder, model=model, engine=engine, cache=kept, device=device, filter=wanted)
        if batch is not None:
            batch.answer(index, lambda texts: index.search(texts, k, filter=wanted, hybrid=hybrid))
            return
        with status("Searching ..."):
            found = index.search(query or "", k, filter=wanted, hybrid=hybrid)
    finally:
        kept.close()
    with index:
        if json:
            print_json({"query": query, "hits": [hit_as_json(hit) for hit in found.hits]})
            return
        show_hits(index, found.hits)


@index_app.command("export")
def export(
    folder: FolderArgument,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="New folder.", show_default=False)],
    to: Annotated[Target, typer.Option("--to", help="What to write.")] = Target.faiss,
    json: JsonOption = False,
) -> None:
    """Copy an index: a FAISS file with ids, a LanceDB or a local Qdrant database."""
    from grace_retrieval.indexing import export as exports
    from grace_retrieval.indexing.index import GraceIndex

    copy = {
        Target.faiss: exports.export_faiss,
        Target.lancedb: exports.export_lancedb,
        Target.qdrant: exports.export_qdrant,
    }[to]
    with GraceIndex.open(folder) as index, status("Copying ..."):
        count = copy(index, output)
    if json:
        print_json({"index": str(folder), "output": str(output), "to": to.value, "documents": count})
    else:
        typer.echo(f"Copied {count:,} documents to {output} ({to.value}).")


def _filter(pairs: list[str]) -> dict[str, Any] | None:
    """Pairs NAME=VALUE as a filter; values as JSON has them, or else as they are written."""
    wanted: dict[str, list[Any]] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise InputError(f"--filter {pair!r}: give NAME=VALUE, such as lang=en.")
        values = wanted.setdefault(name, [])
        values.append(text)
        try:
            values.append(json_library.loads(text))
        except ValueError:
            continue
    return wanted or None
