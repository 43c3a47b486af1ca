"""The picture of an experiment: how well models retrieve, and what is left of the language model."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from grace_benchmarks.record import Row
from grace_retrieval.errors import InputError, MissingExtraError
from grace_training.table import health, labels, mean_of, quality

__all__ = ["plot_trade_off"]


def plot_trade_off(rows: Sequence[Row], path: Path) -> None:
    """Draw mean nDCG@10 against perplexity: a point a recipe and column, a small one each seed.

    Args:
        rows: From `read_experiments`.
        path: A .png, .svg or .pdf file.

    Raises:
        InputError: If no recipe has both, or the file is of another kind.
        MissingExtraError: If matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("matplotlib", "train,bench", "Drawing the plot") from error
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"--plot {path}: give a .png, .svg or .pdf file.")
    matplotlib.use("Agg")  # no window, whatever the machine has
    from matplotlib import pyplot

    good = [row for row in rows if row["status"] == "ok"]
    sets = list(dict.fromkeys(r["set"]["name"] for r in good if r["kind"] == "set" and r["measure"] == "nDCG@10"))
    label, measured, kept = labels(good), quality(good), health(good)
    points = {}
    for system, columns in measured.items():
        ndcg = mean_of(columns, sets)
        perplexity = kept.get(system, {}).get("perplexity_ratio", {})
        if seeds := sorted(ndcg.keys() & perplexity.keys()):
            points[system] = ([perplexity[seed] for seed in seeds], [ndcg[seed] for seed in seeds])
    if not points:
        raise InputError(
            "No recipe has been measured on all retrieval sets and for perplexity: there is nothing to draw."
        )
    figure, axes = pyplot.subplots(figsize=(9, 4.5), layout="constrained")
    recipes = list(dict.fromkeys(system.recipe for system in points))
    palette = matplotlib.colormaps["tab10" if len(recipes) <= 10 else "tab20"]
    for system, (x, y) in sorted(points.items(), key=lambda item: -statistics.mean(item[1][1])):
        colour = palette(recipes.index(system.recipe) % palette.N)
        marker = "o" if system.column == "rationale" else "s"
        face = colour if system.column == "rationale" else "white"
        axes.scatter(x, y, s=12, color=[colour], alpha=0.5, linewidths=0)
        centre = (statistics.mean(x), statistics.mean(y))
        name = label[system].replace(" | ", ", ")
        axes.scatter(*centre, s=70, marker=marker, edgecolors=[colour], facecolors=[face], zorder=3, label=name)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, place: f"{value:g}\u00d7")
    axes.set_xlabel("perplexity of held-out texts, as a multiple of the untrained policy's (lower keeps more)")
    axes.set_ylabel(f"mean nDCG@10 of {len(sets)} collections")
    axes.margins(x=0.1, y=0.1)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False, labelspacing=0.9)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
