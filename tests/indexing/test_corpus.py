"""What is read from files, folders, globs, BEIR collections and the standard input."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grace_retrieval import InputError
from grace_retrieval.indexing import Columns, Corpus, Document, build_index


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_title_and_metadata_stay_apart_from_the_text(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "a.jsonl", {"id": 7, "head": "Tides", "text": "The moon.", "year": 1999, "tags": ["a"]}
    )
    (found,) = Corpus([str(path)], columns=Columns(title="head")).documents()
    assert found == Document(id="7", text="The moon.", title="Tides", metadata={"year": 1999, "tags": ["a"]})
    assert found.embedded_text == "Tides\n\nThe moon."
    assert found.source == f"{path}, line 1"
    (only,) = Corpus([str(path)], columns=Columns(metadata=("year",))).documents()
    assert (only.title, only.metadata) == (None, {"year": 1999})


def test_ids_from_content_follow_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\none\n")
    first, second, third = (document.id for document in Corpus([str(path)]).documents())
    assert first == third != second
    assert len(first) == 32
    path.write_text("two\n")
    assert [document.id for document in Corpus([str(path)]).documents()] == [second]


def test_folders_globs_and_beir(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write_lines(tmp_path / "b.jsonl", {"id": "b", "text": "b"})
    (tmp_path / "a.csv").write_text("id,text,n\na,aa,1\n")
    pq.write_table(pa.table({"id": [3], "text": ["c"]}), tmp_path / "sub" / "c.parquet")
    (tmp_path / "notes.md").write_text("not read")
    with pytest.warns(UserWarning, match=r"read 3 files, and left out 1 \(notes.md\)"):
        assert [d.id for d in Corpus([str(tmp_path)]).documents()] == ["a", "b", "3"]
    assert [d.id for d in Corpus([str(tmp_path / "*.jsonl"), str(tmp_path / "sub")]).documents()] == ["b", "3"]
    beir = tmp_path / "beir"
    beir.mkdir()
    write_lines(beir / "corpus.jsonl", {"_id": "x", "title": "T", "text": "body", "metadata": {"url": "u"}})
    write_lines(beir / "queries.jsonl", {"_id": "q", "text": "not a document"})
    assert list(Corpus([str(beir)]).documents()) == [Document(id="x", text="body", title="T", metadata={"url": "u"})]
    for wrong, message in (("*.zip", "No file matches"), ("nothing", "does not exist"), ("notes.md", "Unknown input")):
        with pytest.raises(InputError, match=message):
            Corpus([str(tmp_path / wrong)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no files named"):
        Corpus([str(tmp_path / "empty")])
    with pytest.raises(InputError, match="No input"):
        Corpus([])


def test_bad_rows_are_named_or_skipped(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"text": "good"}, "{nope", {"text": None}, {"other": 1}, {"text": " "})
    with pytest.raises(InputError, match=r"a\.jsonl, line 2: not JSON"):
        list(Corpus([str(path)]).documents())
    problems: list[str] = []
    assert [d.text for d in Corpus([str(path)]).documents(lambda error: problems.append(str(error)))] == ["good"]
    assert [problem.partition(", ")[2].split(":")[0] for problem in problems] == [
        "line 2",
        "line 3",
        "line 4",
        "line 5",
    ]
    with pytest.raises(InputError, match=r"no column 'body'|no 'body'"):
        list(Corpus([str(path)], columns=Columns(text="body")).documents())


def test_vectors_of_a_column_and_of_an_array(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    rows = [{"id": f"{n}", "text": f"t{n}", "v": [float(x) for x in vector]} for n, vector in enumerate(vectors)]
    lines = write_lines(tmp_path / "a.jsonl", *rows)
    array = tmp_path / "v.npy"
    np.save(array, vectors)
    by_column = list(Corpus([str(lines)], columns=Columns(vectors="v")).documents())
    by_array = list(Corpus([str(lines)], columns=Columns(vectors=str(array), metadata=())).documents())
    for found in (by_column, by_array):
        np.testing.assert_array_equal(np.stack([d.vector for d in found]), vectors)
        assert found[0].metadata == {}
    np.save(array, vectors[:3])
    with pytest.raises(InputError, match=r"line 4: .*3 vectors only"):
        list(Corpus([str(lines)], columns=Columns(vectors=str(array))).documents())
    np.save(array, np.concatenate([vectors, vectors]))
    with pytest.raises(InputError, match=r"8 rows, and .* has 4"):
        list(Corpus([str(lines)], columns=Columns(vectors=str(array))).documents())
    for wrong, message in (
        ([1.0], "1 dimensions, and those before it have 8"),
        ("x", "no list of numbers"),
        ([None] * 8, "NaN"),
    ):
        write_lines(lines, rows[0], {**rows[1], "v": wrong})
        with pytest.raises(InputError, match=f"line 2: .*{message}"):
            list(Corpus([str(lines)], columns=Columns(vectors="v")).documents())
    with pytest.raises(InputError, match="no column 'w' of vectors"):
        list(Corpus([str(lines)], columns=Columns(vectors="w")).documents())


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "a.jsonl", {"text": "a"})
    np.save(tmp_path / "v.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="Cannot read"):
        Corpus([str(lines)], columns=Columns(vectors=str(tmp_path / "v.npy")))


def test_what_json_has_no_word_for(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": ["a"], "day": [datetime.date(2024, 5, 6)], "x": [float("nan")], "raw": [b"1"]})
    pq.write_table(table, path)
    skipped: list[InputError] = []
    for on_bad in (None, skipped.append):
        with pytest.raises(InputError, match=r"a.parquet: column 'raw' is of type binary.*metadata=.*text or numbers"):
            list(Corpus([str(path)]).documents(on_bad))
    assert not skipped, "a whole column is no matter of rows"
    (found,) = Corpus([str(path)], columns=Columns(metadata=("day", "x"))).documents()
    assert found.metadata == {"day": "2024-05-06", "x": None}


def test_rows_are_streamed(tmp_path: Path) -> None:
    """The first documents are there although the file has no end yet."""
    path = write_lines(tmp_path / "a.jsonl", {"id": 1, "text": "a"}, "broken")
    stream = Corpus([str(path)]).documents()
    assert next(stream).id == "1"
    with pytest.raises(InputError, match="line 2"):
        next(stream)


def test_blank_documents(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"id": 1, "text": ""}, {"id": 2, "text": "b", "v": [1, 2]})
    assert [d.text for d in Corpus([str(path)], allow_empty=True).documents()] == ["", "b"]
    with pytest.raises(InputError, match="allow_empty=True"):
        build_index(Corpus([str(path)]).documents(), tmp_path / "index")


def test_titles_of_beir_folders_may_be_absent_unless_they_are_asked_for(tmp_path: Path) -> None:
    write_lines(tmp_path / "corpus.jsonl", {"_id": "a", "text": "x"}, {"_id": "b", "title": "T", "text": "y"})
    assert [d.title for d in Corpus([str(tmp_path)]).documents()] == [None, "T"]
    with pytest.raises(InputError, match="no 'head' among its columns"):
        list(Corpus([str(tmp_path)], columns=Columns(title="head")).documents())


def test_hidden_files_and_folders_are_no_part_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / ".hidden"
    (folder / ".ipynb_checkpoints").mkdir(parents=True)
    old = write_lines(folder / ".ipynb_checkpoints" / "a-checkpoint.jsonl", {"text": "old"})
    (folder / "._a.jsonl").write_bytes(b"\x00\x05\x16\x07\xff")
    with pytest.raises(InputError, match=r"has no files named .* begin with a dot do not count"):
        Corpus([str(folder)])
    write_lines(folder / "a.jsonl", {"text": "new"})
    with pytest.warns(UserWarning, match=r"read 1 files, and left out 2 \(._a.jsonl, .ipynb_checkpoints/a-ch"):
        assert [d.text for d in Corpus([str(folder)]).documents()] == ["new"]
    for given in (folder / "*.jsonl", folder / "**" / "*.jsonl"):
        assert [d.text for d in Corpus([str(given)]).documents()] == ["new"]
    assert [d.text for d in Corpus([str(old)]).documents()] == ["old"], "it was asked for"


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_metadata_that_no_row_has_is_an_error_with_near_names(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"corpus{suffix}"
    texts = {".jsonl": '{"text": "a", "language": "en"}\n{"text": "b", "year": 1}\n', ".csv": "text,language\na,en\n"}
    path.write_text(texts[suffix], encoding="utf-8")
    with pytest.raises(InputError, match="No row has 'languag' to carry along"):
        list(Corpus([str(path)], columns=Columns(metadata=("languag",))).documents())
    corpus = Corpus([str(path)], columns=Columns(metadata=("language",)))
    corpus.check_first()
    assert next(iter(corpus.documents())).metadata == {"language": "en"}
    used = Corpus([str(path)], columns=Columns(metadata=("language", "text", "id")))
    first, *_ = used.documents()
    assert first.metadata == {"language": "en"}, "what is text or id is no error"


def test_the_names_of_a_parquet_file_are_known_before_a_row_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "language": ["en"]}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"'languag' to carry along\. Did you mean language\?"):
        Corpus([str(tmp_path / "c.parquet")], columns=Columns(metadata=("languag",))).check_first()
