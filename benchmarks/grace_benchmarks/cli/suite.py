"""`grace bench suite`: everything of a suite, and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grace_benchmarks.cli.options import NewRows, QuietOption, RunOption, WorkOption
from grace_retrieval.cli.options import CacheOption, DeviceOption
from grace_retrieval.errors import InputError

__all__ = ["suite"]


def suite(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="quick, shipped, budgets, growth, paper, large, or a YAML file.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of rows and report.", show_default="bench-results/NAME", file_okay=False),
    ] = None,
    data_folder: Annotated[Path | None, typer.Option("--data-folder", help="Where collections are looked for.")] = None,
    scale: Annotated[float, typer.Option("--scale", help="Factor on the number of made-up vectors.")] = 1.0,
    cache: CacheOption = "default",
    device: DeviceOption = None,
    work: WorkOption = None,
    run: RunOption = 1,
    no_report: Annotated[bool, typer.Option("--no-report", help="Leave the report out.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Run a suite. Killed and started again, it goes on where it was."""
    from grace_benchmarks.checks import check_encode, check_report, check_retrieval
    from grace_benchmarks.running import check_ann_part, run_ann_part, run_encode_part, run_retrieval_part, with_run
    from grace_benchmarks.suites import load_suite

    found = load_suite(name, scale=scale)
    folder = out or Path("bench-results") / found.name
    store = None if cache.lower() == "none" else cache
    # What is wrong with the last part is said before the first is measured.
    if not no_report:
        check_report(folder / "report", "--out")
    if found.ann is not None:
        check_ann_part(found.ann, folder, work=work)
    if found.retrieval is not None:
        check_retrieval(found.retrieval, folder, data=data_folder, cache=store, device=device)
    for part in found.encode:
        check_encode(part, folder, data=data_folder, device=device)
    rows_said = NewRows(quiet=quiet)
    problems: list[InputError] = []

    def done(finished: int, rows: str) -> None:
        try:
            rows_said.said(finished, folder / rows)
        except InputError as error:  # the other parts are measured, and reported
            problems.append(error)

    if found.ann is not None:
        done(run_ann_part(with_run(found.ann, run, None), folder, work=work, say=rows_said), "ann.jsonl")
    for part in found.encode:
        finished = run_encode_part(part, folder, data=data_folder, device=device, run=run, say=rows_said)
        done(finished, "encode.jsonl")
    if found.retrieval is not None:
        finished = run_retrieval_part(
            found.retrieval, folder, data=data_folder, cache=store, device=device, run=run, say=rows_said
        )
        done(finished, "retrieval.jsonl")
    if not no_report:
        from grace_benchmarks.report.page import write_report

        page = write_report([folder], folder / "report")
        if not quiet:
            typer.echo(f"Report: {page}")
    if problems:
        raise problems[0]
