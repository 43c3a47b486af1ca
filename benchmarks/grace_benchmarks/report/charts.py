"""The pictures: Pareto fronts of indexes, quality of retrieval against its cost, and throughput."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from grace_benchmarks.ann.summary import pareto_front
from grace_benchmarks.record import Row
from grace_benchmarks.report.rows import by_matrix, latest, of_kind, system_name
from grace_retrieval.errors import MissingExtraError

__all__ = ["Chart", "make_charts"]

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C99", "#4D4D4D", "#8C6D31", "#17A398")
INK, FAINT = "#1f2933", "#d9dee4"
MARKERS = "osD^vP*XhpdH"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A picture.

    Attributes:
        name: Name of its file.
        title: What it shows.
        caption: How to read it.
        svg: The picture as an SVG element.
        png: The picture as PNG.
    """

    name: str
    title: str
    caption: str
    svg: str
    png: bytes


def make_charts(rows: Sequence[Row]) -> list[Chart]:
    """Draw what the rows allow.

    Args:
        rows: Rows of all kinds.

    Returns:
        The pictures, in the order of the page.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    drawn = [
        _chart(
            "recall-speed",
            "Recall against speed",
            "Each point is an index with one setting of search parameters; up and to the right is better. The line "
            "joins those that no other beats. Queries one at a time, on the threads that the table names.",
            _recall_speed,
            rows,
        ),
        _chart(
            "recall-memory",
            "Recall against memory",
            "Size of the index for each vector. Up and to the left is better.",
            _recall_memory,
            rows,
        ),
        _chart(
            "speed-size",
            "Speed against the number of vectors",
            "The fastest setting of each index with recall of at least 0.9; where there is none, it has no point.",
            _speed_size,
            rows,
        ),
        _chart(
            "quality",
            "Retrieval quality",
            "nDCG@10, with the standard error over queries. BM25, in grey, is the one to beat.",
            _quality,
            rows,
        ),
        _chart(
            "quality-cost",
            "Quality against the time of a query",
            "Median time to embed one query that was never seen, rationale included (for BM25: to search). Up and to "
            "the left is better.",
            _quality_cost,
            rows,
        ),
        _chart(
            "quality-length",
            "Quality against the length of the rationale",
            "Mean tokens of a document's rationale under a growing budget; 0 is the text alone.",
            _quality_length,
            rows,
        ),
        _chart(
            "throughput",
            "Throughput against the rationale budget",
            "Texts per second, with the range of the repeats. Straightforward: stock generation in batches, then a "
            "second pass.",
            _throughput,
            rows,
        ),
    ]
    return [chart for chart in drawn if chart is not None]


def _chart(
    name: str, title: str, caption: str, draw: Callable[[Any, Sequence[Row]], Any], rows: Sequence[Row]
) -> Chart | None:
    """Draw with our style; None if there is nothing to draw."""
    with _style() as pyplot:
        figure = draw(pyplot, rows)
        if figure is None:
            return None
        svg, png = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
        pyplot.close(figure)
    text = svg.getvalue()
    return Chart(name=name, title=title, caption=caption, svg=text[text.index("<svg") :], png=png.getvalue())


@contextmanager
def _style() -> Iterator[Any]:
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "bench", "Drawing the report") from error
    matplotlib.use("Agg")  # no window, whatever the machine has
    from matplotlib import pyplot

    settings: Any = {
        "svg.hashsalt": "grace",
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlecolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#eef1f4",
        "xtick.color": "#52606d",
        "ytick.color": "#52606d",
        "legend.frameon": False,
        "legend.fontsize": 8,
        "figure.constrained_layout.use": True,
    }
    with matplotlib.rc_context(settings):
        yield pyplot


def _families(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each index, the same in all pictures."""
    names = list(dict.fromkeys(_family(row) for group in by_matrix(rows).values() for row in group))
    return {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}


def _family(row: Row) -> str:
    name = str(row["template"]).replace("{nlist}", "").replace("{pq}", "")
    return name + (" from disk" if row["shard_rows"] else "") + ("" if row["device"] == "cpu" else f" {row['device']}")


def _panels(pyplot: Any, count: int, height: float = 3.6, columns: int = 3) -> tuple[Any, list[Any]]:
    across = min(count, columns)
    down = -(-count // across)
    figure, axes = pyplot.subplots(down, across, figsize=(max(6.2, 3.9 * across), height * down), squeeze=False)
    flat = list(axes.flat)
    for spare in flat[count:]:
        spare.set_axis_off()
    return figure, flat[:count]


def _legend(figure: Any, handles: dict[str, Any]) -> None:
    longest = max(map(len, handles)) + 6
    across = max(1, min(len(handles), int(figure.get_size_inches()[0] * 13 / longest)))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=across, handletextpad=0.3)


def _plain_numbers(axis: Any) -> None:
    """300 and 1,000 instead of 3 x 10^2 and 10^3 below the axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if high < 300 * low else (1.0,)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _recall_speed(pyplot: Any, rows: Sequence[Row]) -> Any:
    matrices = by_matrix(rows)
    if not matrices:
        return None
    families, handles = _families(rows), {}
    figure, axes = _panels(pyplot, len(matrices), 4.0)
    for axis, (name, group) in zip(axes, matrices.items(), strict=True):
        front = pareto_front(group)
        axis.plot(
            [r["single_qps"] for r in front], [r["recall"] for r in front], color="#9aa5b1", linewidth=1.2, zorder=1
        )
        for row in group:
            colour, marker = families[_family(row)]
            handles[_family(row)] = axis.errorbar(
                row["single_qps"],
                row["recall"],
                xerr=[[row["single_qps"] - row["single_qps_min"]], [row["single_qps_max"] - row["single_qps"]]],
                color=colour,
                marker=marker,
                markersize=6,
                markeredgecolor="white",
                markeredgewidth=0.6,
                linestyle="none",
                elinewidth=0.8,
                zorder=2,
            )
        axis.set(xscale="log", title=name, xlabel="queries per second, one at a time")
        _plain_numbers(axis)
    axes[0].set_ylabel("recall@10")
    _legend(figure, handles)
    return figure


def _recall_memory(pyplot: Any, rows: Sequence[Row]) -> Any:
    matrices = by_matrix(rows)
    if not matrices:
        return None
    families, handles = _families(rows), {}
    figure, axes = _panels(pyplot, len(matrices), 4.0)
    for axis, (name, group) in zip(axes, matrices.items(), strict=True):
        for family in dict.fromkeys(map(_family, group)):
            colour, marker = families[family]
            best = max((row for row in group if _family(row) == family), key=lambda row: row["recall"])
            (handles[family],) = axis.plot(
                best["bytes_per_vector"], best["recall"], color=colour, marker=marker, markersize=7, linestyle="none"
            )
        axis.set(xscale="log", title=name, xlabel="bytes a vector (best setting of each index)")
        axis.margins(0.12)
        _plain_numbers(axis)
    axes[0].set_ylabel("recall@10")
    _legend(figure, handles)
    return figure


def _speed_size(pyplot: Any, rows: Sequence[Row]) -> Any:
    matrices = by_matrix(rows)
    sizes = {row["data"]["n"] for group in matrices.values() for row in group}
    if len(sizes) < 2:
        return None
    families = _families(rows)
    figure, axis = pyplot.subplots(figsize=(7.2, 3.8))
    for family, (colour, marker) in families.items():
        points: dict[int, float] = {}
        for group in matrices.values():
            for row in group:
                if _family(row) == family and row["recall"] >= 0.9:
                    points[row["data"]["n"]] = max(points.get(row["data"]["n"], 0.0), row["single_qps"])
        if points:
            axis.plot(
                *zip(*sorted(points.items()), strict=True), color=colour, marker=marker, label=family, linewidth=1.4
            )
    axis.set(xscale="log", yscale="log", xlabel="vectors", ylabel="queries per second, one at a time")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _systems(rows: Sequence[Row]) -> list[Row]:
    """Retrieval rows with the model's own budget, of the last run."""
    found = [row for row in of_kind(rows, "retrieval") if row["max_new_tokens"] is None]
    return latest(found, "data", "model", "column")


def _quality(pyplot: Any, rows: Sequence[Row]) -> Any:
    found = _systems(rows)
    if not found:
        return None
    names = list(dict.fromkeys(map(system_name, found)))
    sets = list(dict.fromkeys(row["data"]["name"] for row in found))
    figure, axis = pyplot.subplots(figsize=(max(6.4, 1.7 * len(sets) + 1.5), 3.6))
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        own = [row for row in found if system_name(row) == name]
        where = [sets.index(row["data"]["name"]) + (place - (len(names) - 1) / 2) * width for row in own]
        colour = "#9aa5b1" if name == "BM25" else COLOURS[(place - 1) % len(COLOURS)]
        axis.bar(
            where,
            [row["nDCG@10"] for row in own],
            width * 0.9,
            yerr=[row["nDCG@10 standard error"] for row in own],
            color=colour,
            label=name,
            error_kw={"elinewidth": 0.8, "ecolor": "#52606d"},
        )
        for x, row in zip(where, own, strict=True):
            axis.annotate(
                f"{row['nDCG@10']:.2f}".lstrip("0"),
                (x, row["nDCG@10"] + row["nDCG@10 standard error"]),
                ha="center",
                va="bottom",
                fontsize=6.5,
                color="#52606d",
                xytext=(0, 1),
                textcoords="offset points",
            )
    axis.set_xticks(range(len(sets)), sets)
    axis.set_ylabel("nDCG@10")
    axis.grid(axis="x", visible=False)
    _legend(figure, dict(zip(names, axis.containers[1::2], strict=True)))
    return figure


def _quality_cost(pyplot: Any, rows: Sequence[Row]) -> Any:
    found = [row for row in _systems(rows) if row.get("query_ms")]
    if not found:
        return None
    names = list(dict.fromkeys(map(system_name, found)))
    sets = list(dict.fromkeys(row["data"]["name"] for row in found))
    handles = {}
    figure, axes = _panels(pyplot, len(sets), 3.2)
    for axis, name in zip(axes, sets, strict=True):
        for row in (row for row in found if row["data"]["name"] == name):
            place = names.index(system_name(row))
            colour = "#52606d" if row["column"] == "bm25" else COLOURS[(place - 1) % len(COLOURS)]
            (handles[system_name(row)],) = axis.plot(
                row["query_ms"], row["nDCG@10"], color=colour, marker=MARKERS[place], markersize=8, linestyle="none"
            )
        top = max(row["nDCG@10"] for row in found if row["data"]["name"] == name)
        axis.set(xscale="log", title=name, xlabel="ms a query", ylim=(0, 1.15 * top))
        axis.margins(x=0.15)
        _plain_numbers(axis)
    axes[0].set_ylabel("nDCG@10")
    _legend(figure, handles)
    return figure


def _quality_length(pyplot: Any, rows: Sequence[Row]) -> Any:
    found = [row for row in of_kind(rows, "retrieval") if row["column"] in ("text", "rationale")]
    lines: dict[tuple[str, str], dict[float, Row]] = {}
    for row in found:
        lines.setdefault((row["model"], row["data"]["name"]), {})[row["rationale_tokens"]] = row
    lines = {name: points for name, points in lines.items() if len(points) > 2}
    if not lines:
        return None
    figure, axis = pyplot.subplots(figsize=(6.6, 3.6))
    for place, ((model, name), points) in enumerate(lines.items()):
        ordered = [points[tokens] for tokens in sorted(points)]
        axis.errorbar(
            [row["rationale_tokens"] for row in ordered],
            [row["nDCG@10"] for row in ordered],
            yerr=[row["nDCG@10 standard error"] for row in ordered],
            color=COLOURS[place % len(COLOURS)],
            marker=MARKERS[place],
            capsize=2,
            linewidth=1.4,
            elinewidth=0.8,
            label=f"{name}, {model}",
        )
    axis.set(xlabel="tokens of a document's rationale", ylabel="nDCG@10", ylim=(0, None))
    axis.legend(loc="best")
    return figure


def _throughput(pyplot: Any, rows: Sequence[Row]) -> Any:
    found = [row for row in of_kind(rows, "encode") if not row["single"]]
    if not found:
        return None
    models = list(dict.fromkeys(row["model"] for row in found))
    figure, axes = _panels(pyplot, len(models), 3.6)
    handles: dict[str, Any] = {}
    for axis, model in zip(axes, models, strict=True):
        lines: dict[str, list[Row]] = {}
        for row in latest(found, "model", "pipeline", "batch_tokens", "cache", "max_new_tokens"):
            if row["model"] == model:
                tokens = f", batches of {row['batch_tokens']:,} tokens" if row["batch_tokens"] else ""
                state = "" if row["cache"] == "none" else f", cache {row['cache']}"
                lines.setdefault(f"{row['pipeline']}{tokens}{state}", []).append(row)
        for place, (name, line) in enumerate(lines.items()):
            handles[name] = axis.errorbar(
                [str(row["max_new_tokens"]) for row in line],
                [row["texts_per_second"] for row in line],
                yerr=[
                    [row["texts_per_second"] - row["texts_per_second_min"] for row in line],
                    [row["texts_per_second_max"] - row["texts_per_second"] for row in line],
                ],
                color=COLOURS[place % len(COLOURS)],
                marker=MARKERS[place],
                linewidth=1.4,
                elinewidth=0.8,
                capsize=2,
            )
        axis.set(yscale="log", title=model, xlabel="most tokens of a rationale")
    axes[0].set_ylabel("texts per second")
    _legend(figure, handles)
    return figure
