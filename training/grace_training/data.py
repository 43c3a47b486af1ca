"""Training data: pairs or texts from files and data sets, checked, and turned into the rows of a GraceTrainer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace_retrieval.corpus.formats import RowFile, type_name
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
_RATIONALES = ("query_rationale", "positive_rationale")
_COLUMNS = ("query", "positive", "negative", "text", *_RATIONALES)


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
        source: A file or folder of any format that corpora have (`grace_retrieval.corpus.formats.FORMATS`), or a
            `datasets.Dataset`.
        columns: What the columns are called, e.g. {"query": "title", "positive": "abstract"}. None: query (or anchor,
            question), positive (answer, document), negative, or text (sentence); query_rationale and
            positive_rationale where rationales are given.
        instruction: Put before every query, with a space: what the queries of this source ask for.
        limit: Take so many rows, drawn with `seed`.
        seed: Seed of the draw.

    Returns:
        A data set with query and positive, and perhaps negative and rationales, or with text; all strings that are not
        blank, but for rationales, which a row may lack (null).

    Raises:
        InputError: If the file is missing, unreadable or empty, lacks a column, or a value is no string or blank; file,
            row and column are named.
    """
    from datasets import Dataset

    if isinstance(source, Dataset):
        name, names = "the data set", source.column_names
        places = [f"row {number}" for number in range(1, len(source) + 1)]
        wanted = _columns(names, columns, name)
        values = {new: source[old] for old, new in wanted.items()}
    else:
        name, names, places, read = _read(Path(source), set((columns or {}).values()))
        wanted = _columns(names, columns, name)
        values = {new: read[old] for old, new in wanted.items()}
    for old, new in wanted.items():
        for where, value in zip(places, values[new], strict=True):
            if value is None and new in _RATIONALES:
                continue
            if not isinstance(value, str) or not value.strip():
                what = "is blank" if isinstance(value, str) else f"is {type_name(value)}, not a string"
                raise InputError(f"{name}, {where}: {old!r} {what}. Mend or remove the row.")
    if not isinstance(source, Dataset):
        data = Dataset.from_dict(values)
    else:
        data = source.select_columns(list(wanted)).rename_columns(wanted)
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
        Rows with prompt (the text), role, other, other_role, negative (a text, or None), rationale and other_rationale
        (as given, or None), and source (number of the source).

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
    numbers = [number for number, source in enumerate(sources) for _ in range(len(source))]
    rows: list[dict[str, Any]] = []
    if config.mode == "unsupervised":
        texts = data["text" if "text" in data.column_names else "positive"]
        rows = [
            _row((text, "document", None), (text, "document", None), None, number)
            for text, number in zip(texts, numbers, strict=True)
        ]
        return Dataset.from_list(rows)
    if "query" not in data.column_names:
        raise InputError(
            "Supervised training needs columns query and positive, and these rows have text alone. Give pairs, or "
            "mode='unsupervised'."
        )
    columns = [
        data[name] if name in data.column_names else [None] * len(data)
        for name in ("query", "query_rationale", "positive", "positive_rationale", "negative")
    ]
    for query, of_query, positive, of_positive, negative, number in zip(*columns, numbers, strict=True):
        document, asked = (positive, "document", of_positive), (query, "query", of_query)
        if "document" in config.rollout_roles:
            rows.append(_row(document, asked, negative, number))
        if "query" in config.rollout_roles:
            rows.append(_row(asked, document, negative, number))
    return Dataset.from_list(rows)


def _row(
    text: tuple[str, str, str | None], other: tuple[str, str, str | None], negative: str | None, source: int
) -> dict[str, Any]:
    return {
        "prompt": text[0],
        "role": text[1],
        "rationale": text[2],
        "other": other[0],
        "other_role": other[1],
        "other_rationale": other[2],
        "negative": negative,
        "source": source,
    }


def open_rows(source: str | os.PathLike[str] | Dataset) -> tuple[Dataset, str]:
    """Open a file as `datasets` reads it, which guesses what are numbers.

    Args:
        source: A .jsonl, .csv or .parquet file, or a `datasets.Dataset`.

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
        data = load_dataset(_LOADERS[path.suffix.lower()], data_files=str(path), split="train")
    except Exception as error:  # datasets wraps whatever its readers raise
        cause = error.__cause__ or error
        raise InputError(f"Cannot read {path}: {' '.join(str(cause).split())}") from error
    return data, str(path)


def _read(path: Path, named: Set[str]) -> tuple[str, list[str], list[str], dict[str, list[object]]]:
    """Read a file as corpora are read: what stands in quotes, or in a CSV file, is text and nothing else.

    Returns:
        Its name, the names of all columns of all rows, where each row stands, and the columns that may be wanted.
    """
    file = RowFile(path=str(path))
    candidates = {*_COLUMNS, *_NAMES, *named}
    names, places = dict.fromkeys(file.header()), list[str]()
    values: dict[str, list[object]] = {}
    for where, row in file.read(candidates):
        if isinstance(row, str):
            raise InputError(f"{file.name}, {where}: {row}")
        names.update(dict.fromkeys(row))
        for column in row.keys() & candidates - values.keys():
            values[column] = [None] * len(places)  # negatives may begin later, and the first row without is named
        for column, there in values.items():
            there.append(row.get(column))
        places.append(where)
    if not places:
        raise InputError(f"{file.name} holds no rows: give at least one pair or text.")
    return file.name, list(names), places, values


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
