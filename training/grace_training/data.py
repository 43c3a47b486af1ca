"""Training data: pairs or texts from files and data sets, checked, and turned into the rows of a GraceTrainer."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace_retrieval.corpus.files import CSV_FIELD_CHARACTERS
from grace_retrieval.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

    from grace_training.config import GraceConfig

__all__ = ["load_examples", "open_rows", "training_rows"]

_LOADERS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
# What a column is called elsewhere → what it is called here.
_NAMES = {
    "anchor": "query",
    "question": "query",
    "answer": "positive",
    "document": "positive",
    "sentence": "text",
}
_COLUMNS = ("query", "positive", "negative", "text")


def load_examples(
    source: str | os.PathLike[str] | Dataset,
    *,
    columns: Mapping[str, str] | None = None,
    instruction: str = "",
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Read pairs (query, positive and perhaps negative) or texts.

    Args:
        source: A .jsonl, .csv or .parquet file, or a `datasets.Dataset`.
        columns: What the columns are called, e.g. {"query": "title", "positive": "abstract"}. None: query (or anchor,
            question), positive (answer, document), negative, or text (sentence).
        instruction: Put before every query, with a space: what the queries of this source ask for.
        limit: Take so many rows, drawn with `seed`.
        seed: Seed of the draw.

    Returns:
        A data set with query and positive, and perhaps negative, or with text; all strings that are not blank.

    Raises:
        InputError: If the file is missing, unreadable or empty, lacks a column, or a value is no string or blank; file,
            row and column are named.
    """
    data, name = open_rows(source, as_text=True)
    wanted = _columns(data.column_names, columns, name)
    data = data.select_columns(list(wanted)).rename_columns(wanted) if wanted else data
    if not len(data):
        raise InputError(f"{name} holds no rows: give at least one pair or text.")
    for column in data.column_names:
        for place, value in enumerate(data[column]):
            if not isinstance(value, str) or not value.strip():
                what = "is blank" if isinstance(value, str) else f"is {type(value).__name__}, not a string"
                original = next(old for old, new in wanted.items() if new == column)
                raise InputError(f"{name}, row {place + 1}: {original!r} {what}. Mend or remove the row.")
    if limit is not None and limit < len(data):
        data = data.shuffle(seed=seed).select(range(limit))
    if instruction and "query" in data.column_names:
        data = data.map(lambda row: {"query": f"{instruction} {row['query']}"})
    return data


def training_rows(examples: Dataset | Sequence[Dataset], config: GraceConfig) -> Dataset:
    """Turn examples into rows of a GraceTrainer: a text that gets rollouts, and what they are compared with.

    Args:
        examples: From `load_examples`; several sources are put behind each other.
        config: Says the mode and which roles get rollouts.

    Returns:
        Rows with prompt (the text), role, other, other_role, and negative (a text, or None).

    Raises:
        InputError: If supervised training gets texts without queries, or sources have different columns.
    """
    from datasets import Dataset, concatenate_datasets

    sources = [examples] if isinstance(examples, Dataset) else list(examples)
    if len({frozenset(source.column_names) for source in sources}) > 1:
        raise InputError(
            "The sources have different columns: "
            f"{'; '.join(', '.join(source.column_names) for source in sources)}. Train on sources of one kind together."
        )
    data = concatenate_datasets(sources)
    rows: list[dict[str, Any]] = []
    if config.mode == "unsupervised":
        texts = data["text" if "text" in data.column_names else "positive"]
        rows = [_row(text, "document", text, "document", None) for text in texts]
        return Dataset.from_list(rows)
    if "query" not in data.column_names:
        raise InputError(
            "Supervised training needs columns query and positive, and these rows have text alone. Give pairs, or "
            "mode='unsupervised'."
        )
    negatives = data["negative"] if "negative" in data.column_names else [None] * len(data)
    for query, positive, negative in zip(data["query"], data["positive"], negatives, strict=True):
        if "document" in config.rollout_roles:
            rows.append(_row(positive, "document", query, "query", negative))
        if "query" in config.rollout_roles:
            rows.append(_row(query, "query", positive, "document", negative))
    return Dataset.from_list(rows)


def _row(prompt: str, role: str, other: str, other_role: str, negative: str | None) -> dict[str, Any]:
    return {"prompt": prompt, "role": role, "other": other, "other_role": other_role, "negative": negative}


def open_rows(source: str | os.PathLike[str] | Dataset, *, as_text: bool = False) -> tuple[Dataset, str]:
    """Open a file as it is.

    Args:
        source: A .jsonl, .csv or .parquet file, or a `datasets.Dataset`.
        as_text: Whether what stands in a CSV file, or in quotes in JSON, is text and nothing else: "NA", 0012 and
            1969-07-20 stay what they are. Otherwise `datasets` guesses.

    Returns:
        Its rows, and what to call it in messages.

    Raises:
        InputError: If the file is missing, unreadable or of another format.
    """
    from datasets import Dataset, load_dataset

    if isinstance(source, Dataset):
        return source, "the data set"
    path = Path(source)
    if not path.is_file():
        raise InputError(f"{path} is no file: give a .jsonl, .csv or .parquet file, or a datasets.Dataset.")
    if path.suffix.lower() not in _LOADERS:
        raise InputError(f"{path}: unknown format. Name it {', '.join(_LOADERS)}.")
    try:
        loader = _LOADERS[path.suffix.lower()]
        if as_text and loader in ("csv", "json"):
            rows = _csv_rows(path) if loader == "csv" else _json_rows(path)
            # Of all rows, not of the first alone: negatives may begin later.
            names = dict.fromkeys(name for row in rows for name in row)
            data = Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})
        else:
            data = load_dataset(loader, data_files=str(path), split="train")
    except Exception as error:  # datasets wraps whatever its readers raise
        cause = error.__cause__ or error
        raise InputError(f"Cannot read {path}: {' '.join(str(cause).split())}") from error
    return data, str(path)


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV file, all strings. The reader of `datasets` takes "NA" for nothing and 0012 for a number."""
    csv.field_size_limit(max(csv.field_size_limit(), CSV_FIELD_CHARACTERS))
    with open(path, encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        rows: list[dict[str, Any]] = []
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"line {reader.line_num} has another number of values than the header")
            rows.append(row)
    return rows


def _json_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON file, a list or an object a line. The reader of `datasets` takes "1969-07-20" for a time."""
    text = path.read_text(encoding="utf-8-sig")
    rows: list[dict[str, Any]] = []
    if text.lstrip().startswith("["):
        rows = json.loads(text)
    else:
        for number, line in enumerate(text.split("\n"), 1):
            try:
                rows += [json.loads(line)] if line.strip() else []
            except ValueError as error:
                raise ValueError(f"line {number} is no JSON ({error})") from error
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("each row must be a JSON object")
    return rows


def _columns(names: Sequence[str], given: Mapping[str, str] | None, name: str) -> dict[str, str]:
    """Columns of a source → their names here."""
    if given is not None:
        if unknown := set(given) - set(_COLUMNS):
            raise InputError(f"columns: unknown {', '.join(sorted(unknown))}; name {', '.join(_COLUMNS)}.")
        if missing := [column for column in given.values() if column not in names]:
            raise InputError(f"{name} has no column {missing[0]!r}, but {', '.join(names)}.")
        found = {column: here for here, column in given.items()}
    else:
        found = {column: _NAMES.get(column, column) for column in names if _NAMES.get(column, column) in _COLUMNS}
    here = list(found.values())
    if len(set(here)) < len(here):
        raise InputError(f"{name}: several of {', '.join(found)} mean the same. Say which with `columns`.")
    if {"query", "positive"} <= set(here):
        return {column: new for column, new in found.items() if new != "text"}
    if "text" in here:
        return {column: new for column, new in found.items() if new == "text"}
    raise InputError(
        f"{name} has columns {', '.join(names)}: there must be query and positive, or text. Say what they are called "
        "with `columns`, e.g. columns={'query': 'title', 'positive': 'abstract'}."
    )
