"""`grace index search` of a file of queries: hits on the terminal, as JSON, or as a run of TREC."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from grace_retrieval.cli.console import error_console, print_indented, print_json, result_console
from grace_retrieval.cli.options import Format
from grace_retrieval.cli.output import check_output, text_file
from grace_retrieval.cli.progress import TextProgress
from grace_retrieval.corpus.beir import open_texts
from grace_retrieval.corpus.runs import check_id, check_tag, write_run
from grace_retrieval.corpus.streams import PACKED
from grace_retrieval.errors import InputError

if TYPE_CHECKING:
    from grace_retrieval.corpus.document import Document
    from grace_retrieval.indexing.hits import Hit, SearchResult
    from grace_retrieval.indexing.index import GraceIndex

__all__ = [
    "OverwriteRunOption",
    "QueriesOption",
    "QueryBatch",
    "QueryFormatOption",
    "QueryIdOption",
    "QueryTextOption",
    "RunFileOption",
    "TagOption",
    "hit_as_json",
    "show_hits",
]

SHOWN_CHARACTERS = 240
SEARCHED_TOGETHER = 64
"""Queries that are embedded and searched at once."""

QueriesOption = Annotated[
    str | None,
    typer.Option(
        "--queries", metavar="FILE", help="Queries of a file, TREC topics or a BEIR folder, instead of QUERY."
    ),
]
RunFileOption = Annotated[
    str | None, typer.Option("--run", metavar="OUT", help="With --queries: write a run file of TREC.")
]
TagOption = Annotated[
    str | None, typer.Option("--tag", help="Name of the system in the run.", show_default="the model's name")
]
QueryFormatOption = Annotated[
    Format | None, typer.Option("--format", help="Format of the queries.", show_default="by the file's name")
]
QueryTextOption = Annotated[str, typer.Option("--text-column", help="Column of the queries.")]
QueryIdOption = Annotated[
    str | None,
    typer.Option(
        "--id-column", help="Column of the queries' ids.", show_default="id if there is one, else row numbers"
    ),
]
OverwriteRunOption = Annotated[bool, typer.Option("--overwrite", help="Replace the run.")]

Search = Callable[[Sequence[str]], "list[SearchResult]"]


@dataclass(frozen=True, kw_only=True)
class QueryBatch:
    """Queries of a file, and where what is found for them goes.

    Args:
        queries: The queries.
        run: File of TREC to write; None prints the hits.
        tag: Name of the system in it; None is the model's.
        overwrite: Whether the run may be there.
        json: Whether to print JSON.
    """

    queries: Sequence[Document]
    run: str | None
    tag: str | None
    overwrite: bool
    json: bool

    @classmethod
    def of(
        cls,
        query: str | None,
        queries: str | None,
        *,
        run: str | None,
        tag: str | None,
        format: Format | None,
        text_column: str,
        id_column: str | None,
        overwrite: bool,
        json: bool,
    ) -> QueryBatch | None:
        """What the options of the command ask for; None for a single query.

        Raises:
            InputError: If they do not go together, the file cannot be read, a query is bad, an id comes twice or cannot
                stand in a run, or the run cannot be written.
        """
        if (query is None) == (queries is None):
            raise InputError("Give one of QUERY and --queries FILE.")
        if queries is None:
            of_files = {
                "--run": run,
                "--tag": tag,
                "--format": format,
                "--text-column": text_column != "text",
                "--id-column": id_column,
                "--overwrite": overwrite,
            }
            if given := [name for name, value in of_files.items() if value]:
                raise InputError(f"{' and '.join(given)} would do nothing: they go with --queries.")
            return None
        if run is None and (tag or overwrite):
            raise InputError(f"{'--tag' if tag else '--overwrite'} would do nothing: it goes with --run.")
        if run is not None:
            check_output(run, overwrite=overwrite)
            if Path(run).suffix.lower() in PACKED:
                raise InputError(f"{run}: runs are written unpacked. Leave out {Path(run).suffix}.")
        if tag is not None:
            check_tag(tag)
        source = open_texts(
            queries,
            "queries",
            format=format.value if format else None,
            text_column=text_column,
            id_column=id_column,
            allow_empty=True,  # a blank query finds nothing
        )
        # All of them are read before a model is loaded.
        found = list(_unique(source.documents(), source.name, for_run=run is not None))
        return cls(queries=found, run=run, tag=tag, overwrite=overwrite, json=json)

    def answer(self, index: GraceIndex, search: Search) -> None:
        """Search, and write or print what is found.

        Args:
            index: The index.
            search: Finds documents for queries.

        Raises:
            InputError: If the id of a document cannot stand in a run.
        """
        with TextProgress(total=len(self.queries)) as progress:
            found = _results(self.queries, search, progress)
            if self.run is not None:
                self._write(self.run, index, found)
            elif self.json:
                print_json({"queries": [_result_as_json(query, result) for query, result in found]})
            else:
                for query, result in found:
                    typer.echo(f"{query.id}  {' '.join(query.text.split())}")
                    show_hits(index, result.hits)

    def _write(self, run: str, index: GraceIndex, found: Iterator[tuple[Document, SearchResult]]) -> None:
        model = Path(index.manifest.identity.model).name if index.manifest.identity else index.folder.resolve().name
        empty = 0

        def scores() -> Iterator[tuple[str, Mapping[str, float]]]:
            nonlocal empty
            for query, result in found:
                empty += not result.hits
                yield query.id, {hit.id: hit.score for hit in result.hits}

        with text_file(run, overwrite=self.overwrite) as stream:
            lines = write_run(stream, scores(), self.tag or "-".join(model.split()))
        if empty:
            error_console().print(f"Warning: nothing was found for {empty:,} queries.", style="yellow")
        if self.json:
            print_json({"run": run, "lines": lines})
        else:
            typer.echo(f"Wrote {run}: {lines:,} lines.")


def _results(
    queries: Sequence[Document], search: Search, progress: TextProgress
) -> Iterator[tuple[Document, SearchResult]]:
    stream = iter(queries)
    while some := list(islice(stream, SEARCHED_TOGETHER)):
        yield from zip(some, search([query.embedded_text for query in some]), strict=True)
        progress.advance(len(some))


def _unique(queries: Iterator[Document], name: str, *, for_run: bool) -> Iterator[Document]:
    """Queries, whose ids must differ: a run could not tell them apart."""
    seen = set[str]()
    for query in queries:
        if query.id in seen:
            raise InputError(f"{query.source}: the id {query.id!r} was there before. Give every query its own id.")
        if for_run:
            check_id(query.id, "query")
        seen.add(query.id)
        yield query
    if not seen:
        raise InputError(f"{name} holds no queries.")


def _result_as_json(query: Document, result: SearchResult) -> dict[str, Any]:
    return {"id": query.id, "query": query.text, "hits": [hit_as_json(hit) for hit in result.hits]}


def hit_as_json(hit: Hit) -> dict[str, Any]:
    """A hit as JSON has it."""
    return {
        "id": hit.id,
        "score": round(hit.score, 6),
        "title": hit.title,
        "text": hit.text,
        "metadata": hit.metadata,
        "rationale": hit.rationale.text,
    }


def show_hits(index: GraceIndex, hits: Sequence[Hit]) -> None:
    """Print hits, best first."""
    console = result_console()
    if not hits:
        console.print("Nothing was found.")
        return
    for hit in hits:
        name = f"{hit.id}  {hit.title}" if hit.title else hit.id
        console.print(Text.assemble((f"{hit.score:6.3f}  ", "bold"), name), soft_wrap=True)
        text = " ".join(hit.text.split())
        shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"
        print_indented(console, Text(shown), 8)
        if hit.rationale.text:
            wrote = hit.rationale.summary or hit.rationale.text
            print_indented(console, Text(f"The model wrote: {wrote}", style="dim"), 8)
    model = index.manifest.identity.model if index.manifest.identity else "an unknown model"
    console.print(Text(f"{len(hits)} of {len(index):,} documents, by {model}.", style="dim"))
