"""One self-contained HTML page: pictures, tables with the best values marked, and what was run on what."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grace_benchmarks.record import Row
from grace_benchmarks.report.charts import make_charts
from grace_benchmarks.report.rows import (
    NOTHING,
    TIMES,
    by_matrix,
    collect,
    compared,
    index_name,
    latest,
    of_kind,
    system_name,
)
from grace_retrieval.errors import InputError

__all__ = ["Cell", "Table", "page_tables", "write_report"]

_TEMPLATE = Path(__file__).with_name("page.html.j2")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A value as it is shown.

    Attributes:
        text: What is shown.
        best: Whether no other row of the table is better.
        note: What the pointer shows, such as the range of the repeats.
    """

    text: str
    best: bool = False
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the page.

    Attributes:
        title: What it is of.
        head: Names of the columns; the first `names` are names, the others numbers.
        rows: The cells.
        names: Columns that are names.
        note: A sentence below.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    names: int = 1
    note: str = ""


def write_report(sources: Sequence[Path], out: Path) -> Path:
    """Write the page and its pictures.

    Args:
        sources: Result files, or folders of them.
        out: Folder; made if it is not there.

    Returns:
        The page.

    Raises:
        InputError: If there are no rows, or the folder cannot be written.
        MissingExtraError: If matplotlib is not installed.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    rows = collect(sources)
    charts = make_charts(rows)
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(
        charts=[{"name": c.name, "title": c.title, "caption": c.caption, "svg": Markup(c.svg)} for c in charts],
        tables=page_tables(rows),
        failures=[row for row in rows if row.get("status") == "failed"],
        runs=_runs(rows),
        count=len(rows),
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        for chart in charts:
            (out / f"{chart.name}.png").write_bytes(chart.png)
        (out / "index.html").write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"Cannot write the report to {out}: {error.strerror}.") from error
    return out / "index.html"


def page_tables(rows: Sequence[Row]) -> list[Table]:
    """The tables that the rows allow."""
    tables = [_index_table(name, group) for name, group in by_matrix(rows).items()]
    tables += _retrieval_tables(rows)
    tables += _task_tables(rows)
    tables += _encode_tables(rows)
    return tables


def _index_table(name: str, group: Sequence[Row]) -> Table:
    ordered = sorted(group, key=lambda row: (-row["recall"], -row["single_qps"]))
    columns = [
        _column(ordered, lambda row: row["recall"], "{:.4f}", max),
        _column(ordered, lambda row: row["single_qps"], "{:,.0f}", max, _spread("single")),
        _column(ordered, lambda row: row["latency_p50_ms"], "{:.3g}", min),
        _column(ordered, lambda row: row["latency_p95_ms"], "{:.3g}", min),
        _column(ordered, lambda row: row["batch_qps"], "{:,.0f}", max, _spread("batch")),
        _column(ordered, lambda row: row["bytes_per_vector"], "{:,.0f}", min),
        _column(ordered, lambda row: row["train_seconds"] + row["add_seconds"], "{:,.2f}", min),
        _column(ordered, lambda row: row["build_peak_mb"], "{:,.0f}", min),
    ]
    first = ordered[0]
    return Table(
        title=f"Indexes over {name} vectors",
        head=(
            "index",
            "search",
            f"recall@{first['k']}",
            "queries/s",
            "p50 ms",
            "p95 ms",
            "queries/s in a batch",
            "bytes a vector",
            "build s",
            "peak MB",
        ),
        rows=[
            (Cell(text=index_name(row)), Cell(text=row["search"] or NOTHING), *cells)
            for row, *cells in zip(ordered, *columns, strict=True)
        ],
        names=2,
        note=f"{first['data']['queries']:,} queries, {first['threads']} thread(s) to search "
        f"and {first['build_threads']} to build, median of {first['repeats']} repeats (range under the "
        f"pointer), seed {first['data']['seed']}. Peak: memory of the building process above what it had with FAISS "
        "loaded.",
    )


def _retrieval_tables(rows: Sequence[Row]) -> list[Table]:
    found = latest(of_kind(rows, "retrieval"), "data", "model", "column", "max_new_tokens")
    tables = []
    for name in dict.fromkeys(row["data"]["name"] for row in found):
        group = [row for row in found if row["data"]["name"] == name]
        data = group[0]["data"]
        measures = [
            _column(group, lambda row, m=measure: row[m], "{:.4f}", max)  # type: ignore[misc]
            for measure in ("nDCG@10", "recall@100", "MRR@10")
        ]
        cost = [
            _column(group, lambda row: row.get("query_ms"), "{:,.1f}", min),
            _column(group, lambda row: row.get("documents_per_second"), "{:,.1f}", max),
            _column(group, lambda row: row.get("rationale_tokens"), "{:,.1f}", None),
        ]
        tables.append(
            Table(
                title=f"Retrieval: {name}",
                head=(
                    "system",
                    "nDCG@10",
                    "recall@100",
                    "MRR@10",
                    "against BM25",
                    "against text only",
                    "ms a query",
                    "documents/s",
                    "tokens a rationale",
                ),
                rows=[
                    (
                        Cell(text=system_name(row)),
                        *cells[:3],
                        _against(row, "BM25", "bm25"),
                        _against(row, row["model"], "text"),
                        *cells[3:],
                    )
                    for row, *cells in zip(group, *measures, *cost, strict=True)
                ],
                note=f"{data['documents']:,} documents, {data['queries']:,} queries. Differences in nDCG@10 with the "
                "p-value of a paired permutation test; not corrected for the number of comparisons."
                + (f" {data['unknown_relevant']} relevant documents are missing." if data["unknown_relevant"] else ""),
            )
        )
    return tables


def _against(row: Row, model: str, column: str) -> Cell:
    return Cell(text=compared(row, model, column))


def _task_tables(rows: Sequence[Row]) -> list[Table]:
    found = latest(of_kind(rows, "task"), "task", "model", "column")
    if not found:
        return []
    systems = list(dict.fromkeys(f"{row['model']}, {row['column']}" for row in found))
    body = []
    for task in sorted({row["task"] for row in found}):
        own = {f"{row['model']}, {row['column']}": row["main_score"] for row in found if row["task"] == task}
        best = max(own.values())
        cells = (
            Cell(text=f"{own[name]:.4f}", best=own[name] == best) if name in own else Cell(text=NOTHING)
            for name in systems
        )
        body.append((Cell(text=task), *cells))
    return [Table(title="mteb tasks, main score", head=("task", *systems), rows=body)]


def _encode_tables(rows: Sequence[Row]) -> list[Table]:
    found = latest(
        of_kind(rows, "encode"), "model", "pipeline", "batch_tokens", "cache", "single", "max_new_tokens", "threads"
    )
    tables = []
    for model in dict.fromkeys(row["model"] for row in found):
        group = [row for row in found if row["model"] == model]
        columns = [
            _column(group, lambda row: row["texts_per_second"], "{:,.1f}", None, _texts),
            _column(group, lambda row: row["tokens_per_second"], "{:,.0f}", None),
            _column(group, lambda row: row["ratio_wall"], "{:.2f}" + TIMES, None),
            _column(group, lambda row: row["ratio_cpu"], "{:.2f}" + TIMES, None),
            _column(group, lambda row: row["process_peak_mb"], "{:,.0f}", None),
        ]
        tables.append(
            Table(
                title=f"Encoding: {model}",
                head=(
                    "most tokens",
                    "pipeline",
                    "texts/s",
                    "tokens/s",
                    "ratio (wall)",
                    "ratio (CPU)",
                    "process peak MB",
                ),
                rows=[
                    (Cell(text=str(row["max_new_tokens"])), Cell(text=_pipeline(row)), *cells)
                    for row, *cells in zip(group, *columns, strict=True)
                ],
                names=2,
                note=f"{group[0]['texts']} texts, {group[0]['repeats']} repeats in turns, {group[0]['threads']} "
                "thread(s). Ratios are to the straightforward pipeline with the same budget.",
            )
        )
    return tables


def _pipeline(row: Row) -> str:
    notes = ["single texts"] if row["single"] else []
    notes += [f"batches of {row['batch_tokens']:,} tokens"] if row["batch_tokens"] else []
    notes += [f"cache {row['cache']}"] if row["cache"] != "none" else []
    return str(row["pipeline"]) + (f" ({', '.join(notes)})" if notes else "")


def _column(
    rows: Sequence[Row],
    value: Callable[[Row], Any],
    form: str,
    better: Callable[[Iterable[Any]], Any] | None,
    note: Callable[[Row], str] = lambda row: "",
) -> list[Cell]:
    """Cells of a column; those that look like the best one are marked."""
    values = [value(row) for row in rows]
    known = [v for v in values if v is not None]
    best = form.format(better(known)) if better is not None and len(rows) > 1 and known else None
    texts = [NOTHING if v is None else form.format(v) for v in values]
    return [Cell(text=text, best=text == best, note=note(row)) for text, row in zip(texts, rows, strict=True)]


def _spread(kind: str) -> Callable[[Row], str]:
    return lambda row: f"{row[f'{kind}_qps_min']:,.0f} to {row[f'{kind}_qps_max']:,.0f}"


def _texts(row: Row) -> str:
    return f"{row['texts_per_second_min']:,.1f} to {row['texts_per_second_max']:,.1f}"


def _runs(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What was run, and on what: one entry for each command and environment."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        place = repr((row["command"], row["environment"]))
        entry = found.setdefault(place, {"command": row["command"], **row["environment"], "rows": 0})
        entry["rows"] += 1
    return list(found.values())
