"""Tables of README and docs, made from rows, and the rows that the package ships for its recommendations.

    make tables                                    # python -m grace_benchmarks.report.tables
    python -m grace_benchmarks.report.tables --check

A file says where a table belongs:  <!-- table: NAME -->  ...  <!-- end table -->
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from grace_benchmarks.ann.growth import growth_table
from grace_benchmarks.ann.summary import agreement, measured_rows, pareto_front
from grace_benchmarks.record import RESULTS, Row, read_rows
from grace_benchmarks.report.rows import COLUMN_NAMES, NOTHING, TIMES, by_matrix, compared, latest, of_kind
from grace_retrieval.errors import GraceError, InputError

__all__ = ["TABLES", "fill", "main", "shipped_rows"]

_BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n)(.*?)(<!-- end table -->)", re.DOTALL)


def fill(text: str, results: Path = RESULTS) -> str:
    """A text with all its tables made anew.

    Args:
        text: Markdown with places for tables.
        results: Folder of the rows.

    Raises:
        InputError: If a place names no table.
    """

    def make(found: re.Match[str]) -> str:
        if found[2] not in TABLES:
            raise InputError(f"There is no table {found[2]!r}: the tables are {', '.join(TABLES)}.")
        return f"{found[1]}\n{TABLES[found[2]](results)}\n{found[4]}"

    return _BLOCK.sub(make, text)


def shipped_rows(results: Path = RESULTS) -> str:
    """Content of grace_retrieval/indexing/measured.json: what recommendations rest on."""
    file = results / "shipped" / "ann.jsonl"
    rows = measured_rows(read_rows(file)) if file.exists() else []
    columns = ("template", "search", "n", "dim", "recall", "qps", "bytes_per_vector", "build_seconds")
    lines = ",\n  ".join(json.dumps([getattr(row, name) for name in columns]) for row in rows)
    source = '"source": "benchmarks/results/shipped/ann.jsonl"'
    return f'{{\n {source},\n "columns": {json.dumps(columns)},\n "rows": [\n  {lines}\n ]\n}}\n'


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> str:
    rule = ["---"] * names + ["---:"] * (len(head) - names)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows)) + "\n"


def _indexes(results: Path) -> str:
    """The Pareto front of every matrix."""
    rows = []
    for name, group in by_matrix(read_rows(results / "shipped" / "ann.jsonl")).items():
        for row in pareto_front(group):
            rows.append(
                (
                    name,
                    f"`{row['factory']}`",
                    f"`{row['search']}`" if row["search"] else "",
                    f"{row['recall']:.3f}",
                    f"{row['single_qps']:,.0f}",
                    f"{row['single_qps_min']:,.0f} to {row['single_qps_max']:,.0f}",
                    f"{row['latency_p95_ms']:.3g}",
                    f"{row['batch_qps']:,.0f}",
                    f"{row['bytes_per_vector']:,.0f}",
                    f"{row['train_seconds'] + row['add_seconds']:,.1f}",
                )
            )
    head = (
        "vectors",
        "index",
        "search",
        "recall@10",
        "queries/s",
        "range",
        "p95 ms",
        "in a batch",
        "bytes a vector",
        "build s",
    )
    return _markdown(head, rows, names=3)


def _retrieval(results: Path, run: str = "shipped") -> str:
    """nDCG@10 of every system and collection of a run; the best in bold."""
    found = [
        row
        for row in of_kind(read_rows(results / run / "retrieval.jsonl"), "retrieval")
        if row["max_new_tokens"] is None
    ]
    found = latest(found, "data", "model", "column")
    sets = list(dict.fromkeys(row["data"]["name"] for row in found))
    best = {name: max(row["nDCG@10"] for row in found if row["data"]["name"] == name) for name in sets}
    rows = []
    for model, column in dict.fromkeys((row["model"], row["column"]) for row in found):
        own = {row["data"]["name"]: row["nDCG@10"] for row in found if (row["model"], row["column"]) == (model, column)}
        cells = [
            f"**{own[n]:.3f}**" if own.get(n) == best[n] else f"{own[n]:.3f}" if n in own else NOTHING for n in sets
        ]
        rows.append((", ".join(filter(None, (model, COLUMN_NAMES[column]))), *cells))
    return _markdown(("nDCG@10", *sets), rows)


def _significance(results: Path) -> str:
    """What the rationale changes, with its p-value and price."""
    rows = []
    for row in latest(
        of_kind(read_rows(results / "shipped" / "retrieval.jsonl"), "retrieval"),
        "data",
        "model",
        "column",
        "max_new_tokens",
    ):
        if row["column"] != "rationale" or row["max_new_tokens"] is not None:
            continue
        rows.append(
            (
                row["data"]["name"],
                compared(row, row["model"], "text"),
                compared(row, "BM25", "bm25"),
                f"{row['recall@100']:.3f}",
                f"{row['MRR@10']:.3f}",
                f"{row['query_ms']:,.0f}",
                f"{row['documents_per_second']:,.1f}",
                f"{row['rationale_tokens']:,.1f}",
            )
        )
    head = (
        "collection",
        "against text only",
        "against BM25",
        "recall@100",
        "MRR@10",
        "ms a query",
        "documents/s",
        "tokens",
    )
    return _markdown(head, rows)


def _budgets(results: Path) -> str:
    """nDCG@10 against the rationale budget."""
    found = latest(
        of_kind(read_rows(results / "budgets" / "retrieval.jsonl"), "retrieval"),
        "data",
        "model",
        "column",
        "max_new_tokens",
    )
    rows = [
        (
            row["data"]["name"],
            "BM25" if row["column"] == "bm25" else "0" if row["column"] == "text" else str(row["max_new_tokens"]),
            f"{row['rationale_tokens']:.1f}" if row["column"] != "bm25" else "",
            f"{row['nDCG@10']:.3f} ± {row['nDCG@10 standard error']:.3f}",
            f"{row['query_ms']:,.1f}",
        )
        for row in found
    ]
    return _markdown(
        ("collection", "most tokens", "mean tokens", "nDCG@10 ± standard error", "ms a query"), rows, names=2
    )


def _encode(results: Path) -> str:
    """Throughput of the pipelines by budget."""
    found = latest(
        of_kind(read_rows(results / "shipped" / "encode.jsonl"), "encode"),
        "model",
        "pipeline",
        "batch_tokens",
        "cache",
        "single",
        "max_new_tokens",
    )
    budgets = sorted({row["max_new_tokens"] for row in found})
    rows = []
    names = ("model", "pipeline", "batch_tokens", "cache", "single")
    for setting in dict.fromkeys(tuple(row[name] for name in names) for row in found):
        own = {row["max_new_tokens"]: row for row in found if tuple(row[name] for name in names) == setting}
        _, pipeline, tokens, cache, single = setting
        notes = [*(["one text at a time"] if single else []), *([f"batches of {tokens:,} tokens"] if tokens else [])]
        notes += [f"cache {cache}"] if cache != "none" else []
        cells = [
            f"{own[b]['texts_per_second']:,.1f} ({own[b]['ratio_wall']:.1f}{TIMES})" if b in own else NOTHING
            for b in budgets
        ]
        rows.append((f"{pipeline}{', ' if notes else ''}{', '.join(notes)}", *cells))
    return _markdown(("texts/s (ratio), most tokens of a rationale →", *map(str, budgets)), rows)


def _growth(results: Path) -> str:
    """Measured cost against the cost that smaller sizes predict."""
    rows = [
        (
            f"`{entry['factory']}`",
            f"`{entry['search']}`" if entry["search"] else "",
            f"{entry['n']:,}",
            f"{entry['measured_ms']:.3g}",
            "" if entry["predicted_ms"] is None else f"{entry['predicted_ms']:.3g}",
            "" if entry["predicted_ms"] is None else f"{entry['measured_ms'] / entry['predicted_ms']:.2f}",
        )
        for entry in growth_table(read_rows(results / "growth" / "ann.jsonl"))
    ]
    return _markdown(("index from disk", "search", "vectors", "ms a query", "predicted", "ratio"), rows, names=2)


def _agreement(results: Path) -> str:
    """Two runs of the quick suite."""
    rows = read_rows(results / "quick" / "ann.jsonl")
    entries = agreement([row for row in rows if row["run"] == 1], [row for row in rows if row["run"] == 2])
    body = [
        (
            f"`{entry['factory']}`",
            f"`{entry['search']}`" if entry["search"] else "",
            "equal" if entry["recall_equal"] else "**differs**",
            *(
                f"{entry[f'{kind}_ratio']:.2f}" + ("" if entry[f"{kind}_overlap"] else " **apart**")
                for kind in ("single", "batch")
            ),
        )
        for entry in entries
    ]
    return _markdown(("index", "search", "recall", "queries/s, second to first run", "in a batch"), body, names=2)


def _engine(results: Path) -> str:
    """The engine against the straightforward pipeline, of engine.json and engine_nano.json."""
    rows = read_rows(results / "engine.json") + read_rows(results / "engine_nano.json")
    body = []
    for what in dict.fromkeys(row["what"] for row in rows):
        own: dict[str, Row] = {row["pipeline"]: row for row in rows if row["what"] == what}
        ours = own["one pass"]
        body.append(
            (
                what,
                f"{own['straightforward']['seconds_per_call']:.2f} s",
                f"{ours['seconds_per_call']:.2f} s",
                f"**{ours['ratio_wall']:.1f}{TIMES}**",
                f"{ours['ratio_cpu']:.1f}{TIMES}",
                f"{own['one pass, no drafts']['ratio_wall']:.1f}{TIMES}",
                f"{ours['largest_difference']:.0e}",
            )
        )
    head = (
        "",
        "straightforward",
        "one pass",
        "ratio (wall)",
        "ratio (CPU)",
        "same, without drafts",
        "largest difference of the vectors",
    )
    return _markdown(head, body)


TABLES: dict[str, Callable[[Path], str]] = {
    "indexes": _indexes,
    "retrieval": _retrieval,
    "grace-small": partial(_retrieval, run="small"),
    "rationale": _significance,
    "budgets": _budgets,
    "encode": _encode,
    "growth": _growth,
    "agreement": _agreement,
    "engine": _engine,
}
"""Every table by its name."""


def main(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing: fail if a table is not that of its rows.")
    ] = False,
) -> None:
    """Make the tables of README and docs, and the rows of the package, from benchmarks/results."""
    try:
        _make(check)
    except GraceError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(1)


def _make(check: bool) -> None:
    root = RESULTS.parents[1]
    wanted = {root / "grace_retrieval" / "indexing" / "measured.json": shipped_rows()}
    for file in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        wanted[file] = fill(file.read_text(encoding="utf-8"))
    stale = [file for file, text in wanted.items() if not file.exists() or file.read_text(encoding="utf-8") != text]
    for file in stale:
        typer.echo(f"{'stale' if check else 'made'}: {file.relative_to(root)}")
        if not check:
            file.write_text(wanted[file], encoding="utf-8")
    if check and stale:
        typer.echo("Make them from the rows with: make tables", err=True)
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
