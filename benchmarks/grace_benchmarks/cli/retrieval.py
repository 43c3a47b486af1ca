"""`grace bench retrieval`: quality and price of models over test collections."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from grace_benchmarks.cli.options import NewRows, OutOption, QuietOption, ThreadsOption
from grace_retrieval.bundled import DEFAULT_MODEL
from grace_retrieval.cli.console import error_console
from grace_retrieval.cli.options import CacheOption, DeviceOption, EngineOption, EngineOptionsOption
from grace_retrieval.errors import InputError

__all__ = ["retrieval"]


def retrieval(
    suite: Annotated[str | None, typer.Option("--suite", help="Suite to run: a name or a YAML file.")] = None,
    data: Annotated[list[str] | None, typer.Option("--data", help="Folder in BEIR layout; again for another.")] = None,
    data_folder: Annotated[
        Path | None, typer.Option("--data-folder", help="Where the collections of a suite are looked for.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Judgements of --data: qrels/SPLIT.tsv.", show_default="test")
    ] = None,
    documents: Annotated[
        str | None,
        typer.Option("--documents", metavar="FILE", help="Documents of their own, with --queries and --qrels."),
    ] = None,
    queries: Annotated[
        str | None, typer.Option("--queries", metavar="FILE", help="Queries of their own: a table, TREC topics, ...")
    ] = None,
    qrels: Annotated[
        Path | None, typer.Option("--qrels", metavar="FILE", help="Judgements of BEIR, TREC or MS MARCO.")
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
            show_default=DEFAULT_MODEL,
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            help="Of bm25, text, echo, rationale, crossed, hybrid, bm25-documents, bm25-queries, bm25-both.",
            show_default="bm25,text,rationale,hybrid",
        ),
    ] = None,
    max_new_tokens: Annotated[
        str | None,
        typer.Option("--max-new-tokens", help="Rationale budgets, with commas.", show_default="the model's"),
    ] = None,
    centre: Annotated[
        bool, typer.Option("--centre", help="Take away what all vectors have in common, fitted on the documents.")
    ] = False,
    cache: CacheOption = "default",
    device: DeviceOption = None,
    engine: EngineOption = "transformers",
    engine_option: EngineOptionsOption = None,
    threads: ThreadsOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of samples and permutation tests.")] = 0,
    runs: Annotated[
        Path | None, typer.Option("--runs", help="Folder for run files of TREC, one a row.", file_okay=False)
    ] = None,
    out: OutOption = Path("bench-results"),
    run: Annotated[
        list[str] | None,
        typer.Option("--run", metavar="FILE", help="Score a run file of TREC of any system; again for another."),
    ] = None,
    run_number: Annotated[
        int, typer.Option("--run-number", min=1, help="Another number measures everything again.")
    ] = 1,
    quiet: QuietOption = False,
) -> None:
    """Measure nDCG@10, recall@100 and MRR@10, with and without rationales, against BM25, and what they cost.

    With --run, the runs alone, unless --model or --columns ask for more.
    """
    from grace_benchmarks.running import run_retrieval_part
    from grace_benchmarks.suites import RetrievalPart, load_suite
    from grace_retrieval.cli.loading import parse_engine_options

    scored, run_number = _scored(run or [], run_number)
    if split and not data:
        raise InputError("--split would do nothing: it goes with --data.")
    files = _files(documents, queries, qrels, alone=bool(scored))
    if suite is not None:
        if data or pairs or task or files or scored:
            raise InputError(
                "--suite says what is searched: leave out --data, --pairs, --task, --documents, --queries, --qrels and "
                "--run."
            )
        part = load_suite(suite).retrieval
        if part is None:
            raise InputError(f"The suite {suite!r} measures no retrieval.")
    elif not (data or pairs or task or files):
        raise InputError("Nothing to search: give --data FOLDER, --documents FILE, --pairs FILE or --task NAME.")
    else:
        part = RetrievalPart(
            data=tuple(data or ()),
            split=split or "test",
            files=files,
            pairs=tuple(map(_pairs, pairs or ())),
            tasks=tuple(task or ()),
            seed=seed,
        )
    changes: dict[str, Any] = {}
    if model:
        changes["models"] = tuple(model)
    if columns:
        changes["columns"] = tuple(name.strip() for name in columns.split(","))
    if scored and not (model or columns):
        changes["columns"] = ()
        if runs is not None:
            raise InputError(
                "--runs would do nothing: with --run alone nothing is measured. Give --model or --columns."
            )
    elif files and "documents" not in files[0]:
        raise InputError("--qrels alone scores --run files: leave out --model and --columns, or give --documents.")
    if max_new_tokens:
        changes["max_new_tokens"] = tuple(map(_budget, max_new_tokens.split(",")))
    if threads:
        changes["threads"] = threads
    if centre:
        changes["centre"] = True
    rows_said = NewRows(quiet=quiet)
    finished = run_retrieval_part(
        replace(part, **changes),
        out,
        data=data_folder,
        cache=None if cache.lower() == "none" else cache,
        device=device,
        run=run_number,
        runs=runs,
        scored=scored,
        engine=engine,
        engine_options=parse_engine_options(engine_option or []),
        say=rows_said,
    )
    rows_said.said(finished, out / "retrieval.jsonl")


def _scored(run: list[str], number: int) -> tuple[list[Path], int]:
    """Run files, and the number of this run, which --run was in 0.1."""
    if len(run) == 1 and run[0].isdigit() and not Path(run[0]).exists():
        error_console().print(f"Warning: --run {run[0]} is now --run-number {run[0]}.", style="yellow")
        return [], max(1, int(run[0]))
    return [Path(name) for name in run], number


def _files(
    documents: str | None, queries: str | None, qrels: Path | None, *, alone: bool
) -> tuple[dict[str, str], ...]:
    """What --documents, --queries and --qrels name; judgements alone are enough to score runs."""
    given = {"--documents": documents, "--queries": queries, "--qrels": qrels}
    if missing := [name for name, value in given.items() if value is None]:
        if len(missing) == 3:
            return ()
        if alone and missing == ["--documents", "--queries"]:
            return ({"qrels": str(qrels)},)
        raise InputError(f"--documents, --queries and --qrels go together: {' and '.join(missing)} is missing.")
    return ({"documents": str(documents), "queries": str(queries), "qrels": str(qrels)},)


def _pairs(text: str) -> dict[str, str]:
    path, *columns = text.rsplit(":", 2) if text.count(":") >= 2 else (text,)
    return {"path": path, **dict(zip(("query", "document"), columns, strict=False))}


def _budget(text: str) -> int:
    if not text.strip().isdigit():
        raise InputError(f"--max-new-tokens: {text!r} is no whole number.")
    return int(text)
