"""`grace explain`: why documents get their scores for a query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from grace_retrieval.bundled import DEFAULT_MODEL, chosen_model
from grace_retrieval.cli.console import print_json, result_console, status
from grace_retrieval.cli.options import (
    CacheOption,
    DeviceOption,
    EchoOption,
    EngineOption,
    EngineOptionsOption,
    IndexFolder,
    JsonOption,
    chosen_mode,
)
from grace_retrieval.cli.output import check_output, text_file
from grace_retrieval.errors import InputError

if TYPE_CHECKING:
    from grace_retrieval.cache import RationaleCache
    from grace_retrieval.explain import Explanation
    from grace_retrieval.explain.documents import EmbeddedDocument
    from grace_retrieval.rationale import RationaleMode

__all__ = ["explain"]


def explain(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="A query.")],
    documents: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DOCUMENT]...",
            help="Texts, or @FILE for the texts of a file (JSON lines, CSV, parquet, or plain text: a text a line); "
            "@@ begins a text with an at sign.",
            show_default=False,
        ),
    ] = None,
    index: Annotated[str | None, IndexFolder] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Hits of the index.")] = 3,
    html: Annotated[str | None, typer.Option("--html", metavar="FILE", help="Write a web page instead.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Bundled model, folder or hub name.",
            metavar="NAME|FOLDER",
            show_default=f"the index's, GRACE_MODEL, or {DEFAULT_MODEL}",
        ),
    ] = None,
    truncate_dim: Annotated[int | None, typer.Option("--truncate-dim", min=1, help="Dimensions to compare.")] = None,
    no_rationale: Annotated[bool, typer.Option("--no-rationale", help="Explain scores of the texts alone.")] = False,
    echo: EchoOption = False,
    cache: CacheOption = "default",
    device: DeviceOption = None,
    engine: EngineOption = "transformers",
    engine_option: EngineOptionsOption = None,
    json: JsonOption = False,
) -> None:
    """Show why documents get their scores for a query: what each word contributes, exactly."""
    if bool(documents) == bool(index):
        raise InputError("Give documents, or an --index to find them in (not both).")
    if index and (truncate_dim or no_rationale or echo or engine != "transformers" or engine_option):
        raise InputError(
            "An index is searched as it was built: leave out --truncate-dim, --no-rationale, --echo and --engine."
        )
    if html is not None:
        if json:
            raise InputError("--json prints, and --html writes a file: give one of them.")
        check_output(html, overwrite=overwrite)
    texts = _texts(documents or [])

    from grace_retrieval.cli.loading import open_command_cache

    opened = open_command_cache(cache)
    try:
        if index:
            found = _of_index(index, query, k, opened, device, model)
        else:
            found = _of_texts(
                chosen_model(model),
                query,
                texts,
                opened,
                device,
                truncate_dim,
                rationale=chosen_mode(no_rationale, echo),
                engine=engine,
                engine_options=engine_option,
            )
    finally:
        opened.close()
    if json:
        print_json({"query": query, "explanations": [explanation.to_dict() for explanation in found]})
    elif html is not None:
        _write(html, query, found, overwrite=overwrite)
    else:
        console = result_console()
        for place, explanation in enumerate(sorted(found, key=lambda explanation: explanation.rank)):
            if place:
                console.rule(style="dim")
            console.print(explanation)
        if not found:
            typer.echo("Nothing was found.")


def _of_index(
    folder: str, query: str, k: int, cache: RationaleCache, device: str | None, model: str | None
) -> list[Explanation]:
    from grace_retrieval.cli.loading import open_index

    with open_index(folder, model=model, cache=cache, device=device) as index, status("Explaining ..."):
        hits = index.search(query, k=k).hits
        return index.embedder.explain(query, hits, rationale=index.manifest.rationale)


def _of_texts(
    model: str,
    query: str,
    texts: list[str | EmbeddedDocument],
    cache: RationaleCache,
    device: str | None,
    truncate_dim: int | None,
    *,
    rationale: RationaleMode | None,
    engine: str,
    engine_options: Sequence[str] | None,
) -> list[Explanation]:
    from grace_retrieval.cli.loading import load_embedder

    embedder = load_embedder(
        model,
        cache=cache,
        device=device,
        truncate_dim=truncate_dim,
        engine=engine,
        engine_options=engine_options,
    )
    with status("Explaining ..."):
        return embedder.explain(query, texts, rationale=rationale)


def _texts(arguments: Sequence[str]) -> list[str | EmbeddedDocument]:
    """The documents that the arguments stand for."""
    from grace_retrieval.corpus.beir import open_texts
    from grace_retrieval.explain.documents import EmbeddedDocument

    texts: list[str | EmbeddedDocument] = []
    for argument in arguments:
        if argument.startswith("@@"):
            texts.append(argument[1:])
        elif argument.startswith("@"):
            rows = open_texts(argument[1:], "corpus").documents()
            texts += [EmbeddedDocument(text=row.embedded_text, id=row.id) for row in rows]
        else:
            texts.append(argument)
    if arguments and not texts:
        raise InputError(f"{', '.join(arguments)}: no texts in there.")
    return texts


def _write(path: str, query: str, found: Sequence[Explanation], *, overwrite: bool) -> None:
    from grace_retrieval.explain.report import report_html

    with text_file(path, overwrite=overwrite) as stream:
        if len(found) == 1:
            stream.write(found[0].to_html())
        else:
            ranked = sorted(found, key=lambda explanation: explanation.rank)
            stream.writelines(report_html([query], [ranked], title="Explanation", facts=f"{len(found)} documents"))
    typer.echo(f"Wrote {path}.")
