"""Metadata keep their types from a file to a filter, and a filter says the same on all faces of an index."""

from __future__ import annotations

import csv
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grace_retrieval import GraceIndex, InputError
from grace_retrieval.indexing import Columns, Corpus, Document, build_index
from grace_retrieval.indexing.filters import Combination, Comparison
from grace_retrieval.indexing.hits import Hit
from grace_retrieval.rationale import Rationale

VECTORS = np.eye(6, dtype=np.float32)
ROWS: list[dict[str, Any]] = [
    {"id": f"d{n}", "text": f"text {n}", "year": 2019 + n, "code": f"00{n}", "share": n / 4, "open": n % 2 == 0}
    for n in range(6)
]


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., GraceIndex]:
    """`opened(suffix, rows)`: an index of rows that went through a file of that format."""

    def make(suffix: str, rows: list[dict[str, Any]] = ROWS) -> GraceIndex:
        path = tmp_path / f"in{suffix}"
        if suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif suffix == ".jsonl":
            path.write_text("\n".join(map(json.dumps, rows)))
        else:
            with open(path, "w", newline="") as stream:
                writer = csv.DictWriter(stream, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        np.save(tmp_path / "v.npy", VECTORS[: len(rows)])
        corpus = Corpus([str(path)], columns=Columns(vectors=str(tmp_path / "v.npy")))
        build_index(corpus.documents(), tmp_path / f"index{suffix}", mode="overwrite")
        return GraceIndex.open(tmp_path / f"index{suffix}")

    return make


def of_python(index: GraceIndex, filter: Any) -> set[str]:
    return set(index.search_vectors(VECTORS[0] + 0.1, k=10, filter=filter)[0].ids)


def of_langchain(index: GraceIndex, filter: Any) -> set[str]:
    pytest.importorskip("langchain_core")
    found = index.as_langchain().similarity_search_by_vector((VECTORS[0] + 0.1).tolist(), k=10, filter=filter)
    return {str(document.id) for document in found}


def of_llama_index(index: GraceIndex, name: str, operator: str, value: Any) -> set[str]:
    pytest.importorskip("llama_index.core")
    from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
    from llama_index.core.vector_stores.types import VectorStoreQuery

    filters = MetadataFilters(filters=[MetadataFilter(key=name, value=value, operator=FilterOperator(operator))])
    query = VectorStoreQuery(query_embedding=(VECTORS[0] + 0.1).tolist(), similarity_top_k=10, filters=filters)
    return set(index.as_llama_index().query(query).ids)


def of_command_line(index: GraceIndex, pair: str) -> set[str]:
    from grace_retrieval.cli.index import _filter

    return of_python(index, _filter([pair]))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_numbers_stay_numbers_and_text_text(opened: Callable[..., GraceIndex], suffix: str) -> None:
    index = opened(suffix)
    (result,) = index.search_vectors(VECTORS[3], k=1)
    assert result.hits[0].metadata == {name: ROWS[3][name] for name in ("year", "code", "share", "open")}
    assert type(result.hits[0].metadata["open"]) is bool
    for found in (of_python(index, {"year": 2021}), of_langchain(index, {"year": 2021})):
        assert found == {"d2"}
    assert of_llama_index(index, "year", "==", 2021) == of_command_line(index, "year=2021") == {"d2"}
    assert of_python(index, {"code": ["001", "005"]}) == of_llama_index(index, "code", "in", ["001", "005"])
    assert of_llama_index(index, "year", ">=", 2023) == of_llama_index(index, "share", ">", 0.9) == {"d4", "d5"}
    assert of_command_line(index, "open=true") == of_python(index, {"open": True}) == {"d0", "d2", "d4"}
    assert of_command_line(index, "code=001") == {"d1"}, "001 is no number to JSON either"
    wrong: tuple[Callable[[], object], ...] = (
        lambda: of_python(index, {"year": "2021"}),
        lambda: of_langchain(index, {"year": "2021"}),
        lambda: of_llama_index(index, "year", "==", "2021"),
        lambda: of_llama_index(index, "year", ">", "2021"),
        lambda: of_llama_index(index, "year", "in", ["2021"]),
    )
    for face in wrong:
        with pytest.raises(InputError, match=r"year .* compares with text, and 'year' is number in all documents"):
            face()


def test_columns_of_csv_are_text(opened: Callable[..., GraceIndex]) -> None:
    index = opened(".csv")
    assert of_python(index, {"year": "2021"}) == of_llama_index(index, "year", "==", "2021") == {"d2"}
    assert of_command_line(index, "year=2021") == {"d2"}, "a shell has no types, so both are tried"
    for face in (
        lambda: of_python(index, {"year": 2021}),
        lambda: of_langchain(index, {"year": [2021, 2022]}),
        lambda: of_llama_index(index, "year", "==", 2021),
        lambda: of_llama_index(index, "year", "!=", 2021),
        lambda: of_llama_index(index, "year", "<", 2021),
    ):
        with pytest.raises(InputError, match=r"with number, and 'year' is text .*columns of CSV files are text"):
            face()


def test_unknown_names_are_errors_on_all_faces(opened: Callable[..., GraceIndex]) -> None:
    index = opened(".jsonl")
    for face in (
        lambda: of_python(index, {"yeer": 2021}),
        lambda: of_langchain(index, {"yeer": 2021}),
        lambda: of_llama_index(index, "yeer", "!=", 2021),
        lambda: of_command_line(index, "yeer=2021"),
    ):
        with pytest.raises(InputError, match=r"no document has metadata 'yeer'\. .*Give one of 'code'"):
            face()


def test_dates_are_text_in_iso_8601(opened: Callable[..., GraceIndex]) -> None:
    days = [datetime.date(2024, 1, n + 1) for n in range(6)]
    index = opened(".parquet", [{"text": f"{n}", "id": f"d{n}", "day": day} for n, day in enumerate(days)])
    assert of_python(index, {"day": days[2]}) == of_python(index, {"day": "2024-01-03"}) == {"d2"}
    assert of_llama_index(index, "day", ">", "2024-01-04") == {"d4", "d5"}
    assert of_python(index, {"day": np.array(["2024-01-03"])[0]}) == {"d2"}


def test_values_of_several_types_and_null(opened: Callable[..., GraceIndex]) -> None:
    values = [1999, "unknown", None, 2005, ["a", "b"]]
    rows = [{"id": f"d{n}", "text": f"{n}", "v": value} for n, value in enumerate(values)]
    index = opened(".jsonl", [*rows, {"id": "d5", "text": "5"}])
    assert of_python(index, {"v": 1999}) == {"d0"}
    assert of_python(index, {"v": None}) == {"d2"}
    assert of_python(index, {"v": [None, "unknown"]}) == {"d1", "d2"}
    assert of_llama_index(index, "v", ">", 2000) == {"d3"}
    assert of_llama_index(index, "v", "contains", "a") == {"d4"}
    assert of_llama_index(index, "v", "contains", "know") == {"d1"}
    assert of_llama_index(index, "v", "!=", 1999) == of_llama_index(index, "v", "nin", [1999]) == {"d1", "d3", "d4"}
    either = Combination((Comparison("v", "==", 1999), Comparison("v", ">", 2000)), "any")
    assert of_python(index, either) == {"d0", "d3"}
    assert of_python(index, Combination((either,), "none")) == {"d1", "d2", "d4", "d5"}


@pytest.mark.parametrize(
    ("operator", "value", "complaint"),
    [("~", 1, "operator='~': give one of =="), (">", [1], "needs a number or a text"), ("in", "a", r"give \['a'\]")],
)
def test_comparisons_that_are_none(operator: Any, value: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        Comparison("v", operator, value)


def test_a_column_that_is_called_as_ours_is_kept(opened: Callable[..., GraceIndex]) -> None:
    pytest.importorskip("langchain_core")
    pytest.importorskip("llama_index.core")
    from llama_index.core.vector_stores.types import VectorStoreQuery

    theirs = {"score": 7, "rationale": "of the corpus", "title": "none of ours"}
    index = opened(".jsonl", [{"id": f"d{n}", "text": f"{n}", **theirs} for n in range(3)])
    (document,) = index.as_langchain().similarity_search_by_vector(VECTORS[0].tolist(), k=1)
    assert document.metadata == {**theirs, "grace_score": 1.0, "grace_rationale": ""}
    found = index.as_llama_index().query(VectorStoreQuery(query_embedding=VECTORS[0].tolist(), similarity_top_k=1))
    (node,) = found.nodes or ()
    assert node.metadata == {**theirs, "grace_rationale": ""}
    assert "of the corpus" in node.get_content(metadata_mode="llm"), "a column of the corpus is shown"
    rationale = Rationale(text="r", token_ids=(), truncated=False, text_truncated=False)
    hit = Hit(id="a", score=0.5, text="x", title="T", metadata={}, rationale=rationale)
    assert hit.beside_metadata(["score", "title", "rationale"]) == {"score": 0.5, "title": "T", "rationale": "r"}


def test_documents_of_python_keep_their_metadata(tmp_path: Path) -> None:
    documents = [Document(id="a", text="x", metadata={"n": 1, "f": 1.0, "s": "1"}, vector=VECTORS[0])]
    build_index(documents, tmp_path / "index")
    (result,) = GraceIndex.open(tmp_path / "index").search_vectors(VECTORS[0])
    assert {name: type(value) for name, value in result.hits[0].metadata.items()} == {"n": int, "f": float, "s": str}
