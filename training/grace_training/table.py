"""The table of an experiment: means over seeds with their spread, made from rows alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from grace_benchmarks.record import Row, read_rows
from grace_retrieval.errors import InputError
from grace_training.evaluation.plan import Column

__all__ = [
    "ROWS_FILE",
    "TABLE_FILE",
    "System",
    "Values",
    "health",
    "labels",
    "make_table",
    "mean_of",
    "name_part",
    "quality",
    "read_experiments",
]

ROWS_FILE = "rows.jsonl"
"""Where an experiment's rows are, below its folder."""

TABLE_FILE = "table.md"
"""Where its table is."""

Best = Literal["high", "low", "none"]

_HEALTH: Mapping[str, tuple[str, Best]] = {
    "perplexity_ratio": ("perplexity ratio", "low"),
    "tokens": ("tokens, documents", "none"),
    "query_tokens": ("tokens, queries", "none"),
    "truncated": ("truncated, documents", "low"),
    "query_truncated": ("truncated, queries", "low"),
    "mean_cosine": ("mean cosine", "low"),
    "effective_rank": ("effective rank", "high"),
    "uniformity": ("uniformity", "low"),
}
_CENTRED = ", centred"
"""What the figures of centred vectors are called by, behind the name of a set."""

_COSTS: Mapping[str, tuple[str, Best]] = {
    "steps": ("steps", "none"),
    "seconds": ("seconds", "none"),
    "cpu_seconds": ("CPU seconds", "none"),
    "seconds_per_step": ("seconds a step", "none"),
    "cpu_seconds_per_step": ("CPU seconds a step", "none"),
}


@dataclass(frozen=True)
class System:
    """What a line of the table is about: a recipe and, but for costs, a way of embedding."""

    recipe: str
    digest: str
    column: str
    max_new_tokens: int | None = None


Values = dict[System, dict[str, dict[int, float]]]
"""By system, name of the column and seed."""


def read_experiments(folders: Sequence[Path]) -> list[Row]:
    """Read the rows of experiments; of the same recipe, seed and measure the last one counts.

    Args:
        folders: Their folders.

    Raises:
        InputError: If one holds no rows, or two were measured on different samples of a set.
    """
    latest: dict[Any, Row] = {}
    runs: dict[Any, str] = {}
    samples: dict[str, str] = {}
    for folder in folders:
        for row in read_rows(Path(folder) / ROWS_FILE):
            place: tuple[Any, ...] = (row["recipe"], row.get("recipe_digest"), row["seed"], row["kind"])
            place += (row.get("column"), row.get("max_new_tokens"), row.get("set", {}).get("name"))
            if row["kind"] == "run" and row["status"] == "ok":
                runs[place[:3]] = row["run"]
            if row["status"] != "ok" and place in latest:
                continue
            # A failure has no digest where the run itself failed: what came of it later replaces it.
            latest.pop((row["recipe"], None, *place[2:]), None)
            latest[place] = row
    # A model that was trained again has no figures but its own.
    rows = [row for place, row in latest.items() if row.get("run") == runs.get(place[:3])]
    for row in rows:
        if row["kind"] == "set" and row["status"] == "ok":
            name, digest = row["set"]["name"], row["data"]["digest"]
            if samples.setdefault(name, digest) != digest:
                raise InputError(
                    f"{', '.join(map(str, folders))}: {name} was measured on different samples, which cannot be "
                    "compared. Evaluate all runs with the same file, or make a table of each folder."
                )
    return rows


def make_table(rows: Sequence[Row], *, against: Sequence[str] = ()) -> str:
    """Write tables of quality, health and costs.

    Args:
        rows: From `read_experiments`.
        against: Recipes that all others are compared with, by paired permutation tests.

    Returns:
        Markdown.

    Raises:
        InputError: If there is no recipe of a name.
    """
    # Recipes as they came, and of each the text first, whatever was measured again.
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    good = [row for row in rows if row["status"] == "ok"]
    good.sort(key=lambda row: (recipes.index(row["recipe"]), get_args(Column).index(row.get("column") or "text")))
    if unknown := sorted(set(against) - {row["recipe"] for row in good}):
        raise InputError(f"There are no rows of {', '.join(unknown)} to compare with.")
    sets: dict[str, Row] = {}
    for row in good:
        if row["kind"] == "set":
            sets.setdefault(row["set"]["name"], row)
    label = labels(good)
    parts = []
    if sets:
        heads: dict[str, tuple[str, Best]] = {name: (f"{name}, {row['measure']}", "high") for name, row in sets.items()}
        retrieval = [name for name, row in sets.items() if row["measure"] == "nDCG@10"]
        found = quality(good)
        heads |= {name + _CENTRED: (name + _CENTRED, "high") for name in retrieval}
        for kind in ("", _CENTRED):
            if len(retrieval) > 1:
                heads["mean" + kind] = (f"mean of {len(retrieval)} nDCG@10{kind}", "high")
                for columns in found.values():
                    columns["mean" + kind] = mean_of(columns, [name + kind for name in retrieval])
        parts += ["## Quality", _lines(found, heads, label), _sizes(sets)]
    if measured := health(good):
        parts += ["## Health", _lines(measured, _HEALTH, label)]
    if costs := _costs(good):
        parts += ["## Cost of training", _lines(costs, _COSTS, label)]
    if against:
        parts += ["## Paired permutation tests", _comparisons(good, against, label)]
    if failed := [row for row in rows if row["status"] != "ok"]:
        lines = [f"- {row['recipe']}, seed {row['seed']}, {name_part(row)}: {row['failed']}" for row in failed]
        parts += ["## Failed", "\n".join(lines)]
    note = "Means over seeds, ± the standard deviation over two or more. The best value of a column is bold."
    return "\n\n".join([note, *parts]) + "\n"


def _system(row: Row) -> System:
    return System(row["recipe"], row["recipe_digest"], row.get("column", ""), row.get("max_new_tokens"))


def labels(rows: Sequence[Row]) -> dict[System, str]:
    """Names of systems; what they share is left out."""
    digests: dict[str, dict[str, None]] = {}
    budgets = dict.fromkeys(row["max_new_tokens"] for row in rows if row.get("max_new_tokens"))
    for row in rows:
        digests.setdefault(row["recipe"], {})[row["recipe_digest"]] = None
    labels = {}
    for system in map(_system, rows):
        several = len(digests[system.recipe]) > 1
        label = f"{system.recipe} [{system.digest[:6]}]" if several else system.recipe
        label += f" | {system.column}" if system.column else ""
        if system.max_new_tokens and len(budgets) > 1:
            label += f" ({system.max_new_tokens} tokens)"
        labels[system] = label
    return labels


def _put(values: Values, system: System, name: str, seed: int, value: float | None) -> None:
    if value is not None:
        values.setdefault(system, {}).setdefault(name, {})[seed] = value


def quality(rows: Sequence[Row]) -> Values:
    """Measures of the sets."""
    values: Values = {}
    for row in rows:
        if row["kind"] == "set":
            _put(values, _system(row), row["set"]["name"], row["seed"], row["value"])
            _put(values, _system(row), row["set"]["name"] + _CENTRED, row["seed"], row.get("centred"))
    return values


def health(rows: Sequence[Row]) -> Values:
    """Measures of health, the ratio of perplexities with each column."""
    values: Values = {}
    ratios = {(r["recipe_digest"], r["seed"]): r["perplexity_ratio"] for r in rows if r["kind"] == "perplexity"}
    for row in rows:
        if row["kind"] == "health":
            found = {**row, "perplexity_ratio": ratios.get((row["recipe_digest"], row["seed"]))}
            for name in _HEALTH:
                _put(values, _system(row), name, row["seed"], found.get(name))
    return values


def _costs(rows: Sequence[Row]) -> Values:
    values: Values = {}
    for row in rows:
        if row["kind"] == "run" and row["steps"]:
            for name in _COSTS:
                _put(values, _system(row), name, row["seed"], row.get(name))
    return values


def mean_of(columns: Mapping[str, Mapping[int, float]], names: Sequence[str]) -> dict[int, float]:
    """Means over sets, of the seeds that were measured on all of them."""
    seeds = set.intersection(*(set(columns.get(name, {})) for name in names))
    return {seed: statistics.mean(columns[name][seed] for name in names) for seed in sorted(seeds)}


def _lines(values: Values, heads: Mapping[str, tuple[str, Best]], label: Mapping[System, str]) -> str:
    """A table in Markdown; columns without any value are left out."""
    shown = {name: head for name, head in heads.items() if any(columns.get(name) for columns in values.values())}
    columns_head = ["recipe", "column"] if any(system.column for system in values) else ["recipe"]
    lines = [
        "| " + " | ".join([*columns_head, "seeds", *(head for head, _ in shown.values())]) + " |",
        "|---" * len(columns_head) + "|---:" * (len(shown) + 1) + "|",
    ]
    digits = {name: _digits([v for c in values.values() for v in c.get(name, {}).values()]) for name in shown}
    best = {name: _best(values, name, direction, digits[name]) for name, (_, direction) in shown.items()}
    for system, columns in values.items():
        cells = []
        seeds = len(set().union(*columns.values()))
        for name in shown:
            found = list(columns.get(name, {}).values())
            text = _cell(found, digits[name])
            if 0 < len(found) < seeds:
                text += f" ({len(found)} of {seeds} seeds)"
            bold = bool(found) and round(statistics.mean(found), digits[name]) == best[name]
            cells.append(f"**{text}**" if bold else text)
        lines.append("| " + " | ".join([label[system], str(seeds), *cells]) + " |")
    return "\n".join(lines)


def _mean(seeds: Mapping[int, float]) -> float:
    return statistics.mean(seeds.values())


def _digits(values: Sequence[float]) -> int:
    """Digits behind the point: none for counts, three for shares, fewer for large numbers."""
    if all(isinstance(value, int) for value in values):
        return 0
    largest = max(map(abs, values))
    return 3 if largest < 10 else 1 if largest < 1000 else 0


def _cell(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def _best(values: Values, name: str, direction: Best, digits: int) -> float | None:
    """The best mean as it is printed, so that equal ones are all bold; None where nothing is best."""
    means = [round(_mean(columns[name]), digits) for columns in values.values() if columns.get(name)]
    if direction == "none" or len(means) < 2:
        return None
    return max(means) if direction == "high" else min(means)


def _sizes(sets: Mapping[str, Row]) -> str:
    kinds = ("queries", "documents", "pairs", "labels", "train", "test")
    parts = []
    for name, row in sets.items():
        data = row["data"]
        parts.append(f"{name} {', '.join(f'{data[kind]} {kind}' for kind in kinds if kind in data)}")
    return f"Sizes: {'; '.join(parts)}."


def name_part(row: Row) -> str:
    """What a row is about, in words.

    Args:
        row: From `read_experiments`.

    Example:
        >>> name_part({"kind": "set", "set": {"name": "cranfield"}, "column": "text"})
        'cranfield (text)'
    """
    what = str(row["set"]["name"] if row["kind"] == "set" else "training" if row["kind"] == "run" else row["kind"])
    return f"{what} ({row['column']})" if row.get("column") else what


# ---------------------------------------------------------------------- tests


def _comparisons(rows: Sequence[Row], against: Sequence[str], label: Mapping[System, str]) -> str:
    """nDCG@10 query by query, each the mean over seeds, against that of other systems."""
    from grace_benchmarks.retrieval.metrics import significance

    found = _per_query(rows)
    names = list(dict.fromkeys(name for sets in found.values() for name in sets))
    lines = [
        "Difference in nDCG@10 and the two-sided p-value, over the queries, whose values are means over seeds. Not "
        "corrected for the number of comparisons.",
        "",
        "| "
        + " | ".join(["recipe", "column", "against", "column", *names, *(["all queries"] * (len(names) > 1))])
        + " |",
        "|---" * 4 + "|---:" * (len(names) + (len(names) > 1)) + "|",
    ]
    for system, ours in found.items():
        for other, theirs in found.items():
            if other.recipe not in against or system.recipe in against:
                continue
            pairs = [(ours[name], theirs[name]) if name in ours and name in theirs else None for name in names]
            cells = ["-" if pair is None else _tested(pair, significance) for pair in pairs]
            if len(names) > 1:
                whole = [pair for pair in pairs if pair is not None]
                joined = (
                    (np.concatenate([a for a, _ in whole]), np.concatenate([b for _, b in whole])) if whole else None
                )
                cells.append("-" if joined is None or None in pairs else _tested(joined, significance))
            lines.append("| " + " | ".join([label[system], label[other], *cells]) + " |")
    return "\n".join(lines)


def _tested(pair: tuple[Any, Any], significance: Any) -> str:
    ours, theirs = pair
    return f"{np.mean(ours) - np.mean(theirs):+.3f} (p {significance(ours, theirs):.2g})"


def _per_query(rows: Sequence[Row]) -> dict[System, dict[str, Any]]:
    """nDCG@10 of every query, means over seeds, by system and set."""
    found: dict[System, dict[str, list[Any]]] = {}
    for row in rows:
        if row["kind"] == "set" and "per_query" in row:
            found.setdefault(_system(row), {}).setdefault(row["set"]["name"], []).append(row["per_query"]["nDCG@10"])
    return {
        system: {name: np.mean(np.asarray(seeds, dtype=np.float64), axis=0) for name, seeds in sets.items()}
        for system, sets in found.items()
    }
