"""`grace bench retrieval`: quality and price of models over test collections."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from grace_benchmarks.cli.options import NewRows, OutOption, QuietOption, RunOption, ThreadsOption
from grace_retrieval.cli.options import CacheOption, DeviceOption, EngineOption, EngineOptionsOption
from grace_retrieval.errors import InputError

__all__ = ["retrieval"]


def retrieval(
    suite: Annotated[str | None, typer.Option("--suite", help="Suite to run: a name or a YAML file.")] = None,
    data: Annotated[list[str] | None, typer.Option("--data", help="Folder in BEIR layout; again for another.")] = None,
    data_folder: Annotated[
        Path | None, typer.Option("--data-folder", help="Where the collections of a suite are looked for.")
    ] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option("--pairs", help="FILE:QUERY:DOCUMENT, a table whose rows are queries and their documents."),
    ] = None,
    task: Annotated[list[str] | None, typer.Option("--task", help="mteb task by name; again for another.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="Name or folder; st:NAME for any sentence-transformers model; names of `grace fetch --list`.",
            show_default="grace-nano",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option("--columns", help="Of bm25, text, rationale, hybrid, with commas.", show_default="all of them"),
    ] = None,
    max_new_tokens: Annotated[
        str | None,
        typer.Option("--max-new-tokens", help="Rationale budgets, with commas.", show_default="the model's"),
    ] = None,
    cache: CacheOption = "default",
    device: DeviceOption = None,
    engine: EngineOption = "transformers",
    engine_option: EngineOptionsOption = None,
    threads: ThreadsOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of samples and permutation tests.")] = 0,
    out: OutOption = Path("bench-results"),
    run: RunOption = 1,
    quiet: QuietOption = False,
) -> None:
    """Measure nDCG@10, recall@100 and MRR@10, with and without rationales, against BM25, and what they cost."""
    from grace_benchmarks.running import run_retrieval_part
    from grace_benchmarks.suites import RetrievalPart, load_suite
    from grace_retrieval.cli.loading import parse_engine_options

    if suite is not None:
        if data or pairs or task:
            raise InputError("--suite says what is searched: leave out --data, --pairs and --task.")
        part = load_suite(suite).retrieval
        if part is None:
            raise InputError(f"The suite {suite!r} measures no retrieval.")
    elif not (data or pairs or task):
        raise InputError("Nothing to search: give --data FOLDER, --pairs FILE or --task NAME.")
    else:
        part = RetrievalPart(
            data=tuple(data or ()), pairs=tuple(map(_pairs, pairs or ())), tasks=tuple(task or ()), seed=seed
        )
    changes: dict[str, Any] = {}
    if model:
        changes["models"] = tuple(model)
    if columns:
        changes["columns"] = tuple(name.strip() for name in columns.split(","))
    if max_new_tokens:
        changes["max_new_tokens"] = tuple(map(_budget, max_new_tokens.split(",")))
    if threads:
        changes["threads"] = threads
    rows_said = NewRows(quiet=quiet)
    finished = run_retrieval_part(
        replace(part, **changes),
        out,
        data=data_folder,
        cache=None if cache.lower() == "none" else cache,
        device=device,
        run=run,
        engine=engine,
        engine_options=parse_engine_options(engine_option or []),
        say=rows_said,
    )
    rows_said.said(finished, out / "retrieval.jsonl")


def _pairs(text: str) -> dict[str, str]:
    path, *columns = text.rsplit(":", 2) if text.count(":") >= 2 else (text,)
    return {"path": path, **dict(zip(("query", "document"), columns, strict=False))}


def _budget(text: str) -> int:
    if not text.strip().isdigit():
        raise InputError(f"--max-new-tokens: {text!r} is no whole number.")
    return int(text)
