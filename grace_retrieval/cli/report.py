"""`grace report`: what an index finds for queries, and why, on one page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grace_retrieval.cli.options import CacheOption, DeviceOption, IndexFolder, IndexModelOption
from grace_retrieval.cli.output import check_output, text_file
from grace_retrieval.cli.progress import TextProgress
from grace_retrieval.corpus.beir import open_texts
from grace_retrieval.errors import InputError

if TYPE_CHECKING:
    from grace_retrieval.explain import Explanation
    from grace_retrieval.indexing import GraceIndex

__all__ = ["report"]

SEARCHED_TOGETHER = 64
"""Queries that are embedded and searched at once."""


def report(
    index: Annotated[str, IndexFolder],
    queries: Annotated[
        str,
        typer.Option(
            "--queries",
            metavar="FILE",
            help="JSON lines, CSV, TREC topics, text (a query a line) or a BEIR folder.",
        ),
    ],
    html: Annotated[str, typer.Option("--html", metavar="OUT", help="The page to write.")],
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Hits of a query.")] = 10,
    text_column: Annotated[str, typer.Option("--text-column", help="Column or key of the queries.")] = "text",
    title: Annotated[str, typer.Option("--title", help="Title of the page.")] = "Retrieval report",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
    model: IndexModelOption = None,
    cache: CacheOption = "default",
    device: DeviceOption = None,
) -> None:
    """Write a page with the hits, scores, rationales and heat maps of queries. It opens without a server."""
    check_output(html, overwrite=overwrite)
    texts = [row.embedded_text for row in open_texts(queries, "queries", text_column=text_column).documents()]
    if not texts:
        raise InputError(f"{queries} holds no queries.")

    from grace_retrieval.cli.loading import open_command_cache, open_index
    from grace_retrieval.explain.report import report_html

    kept = open_command_cache(cache)
    try:
        with open_index(index, model=model, cache=kept, device=device) as opened:
            facts = (
                f"{len(texts):,} queries, up to {k} hits each, {len(opened):,} documents in "
                f"{Path(index).resolve().name}, model {Path(opened.embedder.pipeline.name).name}"
            )
            with (
                text_file(html, overwrite=overwrite) as stream,
                TextProgress(total=len(texts)) as progress,
            ):
                answers = _answers(opened, texts, k, progress)
                stream.writelines(report_html(texts, answers, title=title, facts=facts))
    finally:
        kept.close()
    typer.echo(f"Wrote {html}: {len(texts):,} queries.")


def _answers(index: GraceIndex, queries: Sequence[str], k: int, progress: TextProgress) -> Iterator[list[Explanation]]:
    """Explanations of each query's hits, best first."""
    for start in range(0, len(queries), SEARCHED_TOGETHER):
        for result in index.search(queries[start : start + SEARCHED_TOGETHER], k=k):
            yield index.embedder.explain(result.query, result.hits, rationale=index.manifest.rationale)
            progress.advance()
