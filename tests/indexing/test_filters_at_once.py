"""A filter over columns says what the same filter says of one document after the other."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grace_retrieval import InputError
from grace_retrieval.corpus.document import Document
from grace_retrieval.indexing.filters import Combination, Comparison, Filter, allowed_rows
from grace_retrieval.indexing.manifest import ShardFile
from grace_retrieval.indexing.metadata import MetadataColumns
from grace_retrieval.indexing.rows import RowReader
from grace_retrieval.indexing.shards import Written, shard_table, write_shard

MISSING = object()
WHOLE = [0, 1, -1, 7, 2023, 2**53, 2**53 + 1, -(2**63), 2**63 - 1]
FRACTIONS = [0.0, -0.0, 0.1, 1.0, 7.5, 1e300, -2.5, 2023.0]
TEXTS = ["", "a", "ä", "a b", 'say "null"', "line\nend", "nul\0", "\N{GRINNING FACE}", "2023", "true", "{", "Zebra"]
LISTS = [[], [1, "a"], ["a", None], [[1]], {}, {"year": 1}, {"other": None}]
COLUMNS: dict[str, list[Any]] = {
    "whole": WHOLE,
    "small": [0, 1, 2, 3],
    "fractions": FRACTIONS,
    "numbers": [0, 1, 0.5, 7, 7.0, -3],
    "large": [*FRACTIONS, *WHOLE, 2**63, 10**30],
    "not finite": [float("nan"), float("inf"), -float("inf"), 1, 0.5],
    "text": TEXTS,
    "gaps": [*TEXTS, None, MISSING],
    "numbers with gaps": [1, 2, 3, None, MISSING],
    "truths": [True, False],
    "true": [True, None, MISSING],
    "mixed": [*WHOLE, *FRACTIONS, *TEXTS, *LISTS, True, False, None, MISSING],
    "lists": LISTS,
    "nothing": [None, MISSING],
    "nulls": [None],
    'odd "name"\n': [1, "a", MISSING],
    "year": [{"year": None}, MISSING],
}
VALUES = [*WHOLE, *FRACTIONS, *TEXTS, *LISTS, True, False, None, 2**63, 10**400, 1.5e-320, "\ud800", "no such", b"a"]
VALUES += [json.loads("NaN"), float("nan"), float("inf")]
ORDERED = [value for value in VALUES if isinstance(value, (int, float, str))] + [float("inf"), float("nan"), 6.9999]

Reader = Callable[[list[dict[str, Any]]], RowReader]


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    def make(metadata: list[dict[str, Any]], rows: int = 700) -> RowReader:
        shards: list[ShardFile] = []
        for start in range(0, len(metadata), rows):
            documents = [
                Document(id=f"{n}", text="t", metadata=m) for n, m in enumerate(metadata[start : start + rows])
            ]
            vectors = np.arange(start, start + len(documents), dtype=np.float32)[:, None]
            table = shard_table(documents, [Written()] * len(documents), vectors)
            shards.append(write_shard(tmp_path / f"{len(shards):06d}.parquet", table))
        return RowReader(tmp_path, shards)

    return make


def drawn(chance: random.Random, rows: int) -> list[dict[str, Any]]:
    found = []
    for _ in range(rows):
        row = {name: chance.choice(values) for name, values in COLUMNS.items()}
        found.append({name: value for name, value in row.items() if value is not MISSING})
    found[:: len(found) // 7] = [{}] * len(found[:: len(found) // 7])
    return found


def comparison(chance: random.Random) -> Comparison:
    name = chance.choice([*COLUMNS, "small", "text", "numbers"])
    operator: Any = chance.choice(["==", "!=", ">", ">=", "<", "<=", "in", "not in", "contains"])
    near = [value for value in COLUMNS[name] if value is not MISSING]
    if operator in (">", ">=", "<", "<="):
        ordered = [value for value in near if isinstance(value, (int, float, str))]
        return Comparison(name, operator, chance.choice(ordered if ordered and chance.random() < 0.6 else ORDERED))
    pool = near if chance.random() < 0.6 else VALUES
    if operator in ("in", "not in"):
        return Comparison(name, operator, [chance.choice(pool) for _ in range(chance.randrange(5))])
    return Comparison(name, operator, chance.choice(pool))


def combination(chance: random.Random, depth: int = 0) -> Combination:
    parts = tuple(
        combination(chance, depth + 1) if depth < 2 and chance.random() < 0.3 else comparison(chance)
        for _ in range(chance.randrange(4))
    )
    return Combination(parts, chance.choice(["all", "any", "none"]))


def answer(ask: Callable[[], Any]) -> Any:
    try:
        return ask().tolist()
    except Exception as error:
        return type(error), str(error)


def same(columns: MetadataColumns, reader: RowReader, filter: Filter) -> Any:
    """What both ways answer."""
    expected = answer(lambda: allowed_rows(filter, reader.column("metadata"), len(reader)))
    assert answer(lambda: columns.allowed(filter)) == expected, filter
    return expected


@pytest.mark.parametrize("seed", range(3))
def test_random_filters_on_random_metadata(reader: Reader, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grace_retrieval.indexing.metadata._ROWS", 500)
    chance = random.Random(seed)
    rows = reader(drawn(chance, 1500))
    columns = MetadataColumns(rows)
    answers = [same(columns, rows, Combination((comparison(chance),))) for _ in range(250)]
    answers += [same(columns, rows, combination(chance)) for _ in range(100)]
    refused = [found for found in answers if isinstance(found, tuple)]
    allowed = [sum(found) for found in answers if isinstance(found, list)]
    assert len(refused) > 10 and all(kind in (InputError, TypeError) for kind, _ in refused)
    assert len({count for count in allowed if 0 < count < 1500}) > 50, "most filters allow some rows and not others"


def test_a_column_of_one_type_here_and_another_there(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grace_retrieval.indexing.metadata._ROWS", 100)
    rows = reader([{"v": v} for v in [*range(100), *(f"{n}" for n in range(100)), *(n / 4 for n in range(100))]])
    columns = MetadataColumns(rows)
    for filter in ({"v": 7}, {"v": "7"}, {"v": [7, "7", 0.25]}, Combination((Comparison("v", ">=", 99),))):
        assert sum(same(columns, rows, filter)) > 0


@pytest.mark.parametrize(
    "filter",
    [{}, {"no": 1}, {1: 1}, {"n": "1"}, {"n": []}, 5, {"n": None}, lambda m: m["n"] == 3, {"n": np.int64(3)}],
    ids=lambda asked: "a function" if callable(asked) else str(asked),
)
def test_filters_that_are_none_and_functions(reader: Reader, filter: Any) -> None:
    rows = reader([{"n": n} for n in range(10)])
    same(MetadataColumns(rows), rows, filter)
    empty = reader([])
    same(MetadataColumns(empty), empty, filter)


def test_what_is_kept_is_bounded_and_used_again(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grace_retrieval.indexing.metadata._ROWS", 200)
    metadata = [{"n": n, "word": f"word {n}", "group": n % 3, "list": [n]} for n in range(2000)]
    rows = reader(metadata)
    read: list[str] = []
    part = rows.part
    monkeypatch.setattr(rows, "part", lambda name, start, stop: read.append(name) or part(name, start, stop))
    columns = MetadataColumns(rows, max_bytes=30_000)
    for _ in range(2):
        assert sum(columns.allowed({"n": list(range(100))})) == 100
    assert len(read) == 10, "read once, found twice"
    for filter in ({"word": "word 5"}, {"list": [[5]]}, {"group": 1}, {"n": 5}, {"n": 5, "word": "word 5"}):
        assert same(columns, rows, filter)
        assert 0 < columns._bytes == sum(kept.bytes for kept in columns._kept.values()) <= 30_000
    columns.forget()
    assert not columns._bytes and sum(columns.allowed({"n": 5})) == 1


def test_metadata_that_python_alone_reads(tmp_path: Path) -> None:
    """What json.dumps writes of keys that are no texts, and of halves of surrogate pairs."""
    texts = [json.dumps({1: "a", "1": "b"}), json.dumps({"1": "\ud800"}), None, "", '{"1": "b", "2": null}']
    table = shard_table([Document(id=f"{n}", text="t") for n in range(5)], [Written()] * 5, np.ones((5, 1), np.float32))
    place = table.schema.get_field_index("metadata")
    shard = write_shard(tmp_path / "a.parquet", table.set_column(place, table.schema.field(place), [texts]))
    rows = RowReader(tmp_path, [shard])
    columns = MetadataColumns(rows)
    assert same(columns, rows, {"1": "b"}) == [True, False, False, False, True]
    assert same(columns, rows, {"1": "\ud800"}) == [False, True, False, False, False]
    assert same(columns, rows, {"2": None}) == [False, False, False, False, True]


def test_rows_of_a_part_and_their_vectors(reader: Reader) -> None:
    rows = reader([{"n": n} for n in range(2000)])
    for start, stop in [(0, 2000), (0, 1), (255, 257), (699, 701), (512, 1900), (1999, 2000), (5, 5)]:
        found = [json.loads(text)["n"] for text in rows.part("metadata", start, stop).to_pylist()]
        assert found == list(range(start, stop))
    asked = np.array([1999, 0, 700, 3, 3, 699, 256], dtype=np.int64)
    assert rows.vectors(asked)[:, 0].tolist() == asked.tolist()
    assert rows.vectors(asked[:0]).shape[0] == 0
