"""`grace bench`: how good is retrieval, which index at what size, and what does a rationale cost?

Found by the entry point `grace_retrieval.commands`. Importing this loads no measuring library.
"""

from __future__ import annotations

import typer

from grace_benchmarks.cli.ann import ann
from grace_benchmarks.cli.encode import encode
from grace_benchmarks.cli.report import report
from grace_benchmarks.cli.retrieval import retrieval
from grace_benchmarks.cli.suite import suite

__all__ = ["bench_app"]

bench_app = typer.Typer(
    help="Measure indexes, retrieval quality and encoding; report on the rows.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
)
bench_app.command("ann")(ann)
bench_app.command("retrieval")(retrieval)
bench_app.command("encode")(encode)
bench_app.command("suite")(suite)
bench_app.command("report")(report)
