"""Texts from files: every format gives the same texts, and every complaint names file and line."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grace_retrieval.corpus.files import TextSource
from grace_retrieval.errors import InputError

TEXTS = [
    "Zürich: naïve café",
    "日本語のテキスト 🦊",
    "  blanks at both ends  ",
    'a "quoted" word, and a comma',
    "a\ttab, a line separator \u2028, a next line \x85 and a form feed \x0c",
    "{not: json}",
    "twice",
    "twice",
]
TITLES = ["One", "", "Three", " ", "五", "Six", "Seven", "Eight"]
ROWS = [
    {"id": f"d{number}", "title": title, "text": text}
    for number, (title, text) in enumerate(zip(TITLES, TEXTS, strict=True))
]


def write(path: Path, rows: list[dict[str, Any]], *, newline: str = "\n") -> Path:
    """Writes rows in the format that the file's name says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
        return path
    with open(path, "w", encoding="utf-8", newline="") as stream:
        if path.suffix == ".csv":
            writer = csv.DictWriter(stream, list(rows[0]), lineterminator=newline)
            writer.writeheader()
            writer.writerows(rows)
        else:
            lines = [row["text"] if path.suffix == ".txt" else json.dumps(row, ensure_ascii=False) for row in rows]
            stream.writelines(line + newline for line in lines)
    return path


def read(path: Path | str, **options: Any) -> list[tuple[str, str]]:
    return [(row.id, row.embedded_text) for row in TextSource(path=str(path), **options).documents()]


def problems(path: Path, **options: Any) -> tuple[list[str], list[str]]:
    """Texts that are read, and complaints, when bad rows are skipped."""
    found: list[InputError] = []
    texts = [row.embedded_text for row in TextSource(path=str(path), **options).documents(found.append)]
    return texts, [str(problem) for problem in found]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".txt"])
def test_texts_are_kept_byte_for_byte_and_in_order(tmp_path: Path, suffix: str, newline: str) -> None:
    path = write(tmp_path / f"in{suffix}", ROWS, newline=newline)
    ids = [str(number) for number in range(8)] if suffix == ".txt" else [f"d{number}" for number in range(8)]
    assert read(path) == list(zip(ids, TEXTS, strict=True))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_texts_with_line_breaks(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": "one\ntwo\r\nthree"}, {"text": "\nfour\n"}]
    assert read(write(tmp_path / f"in{suffix}", rows)) == [("0", "one\ntwo\r\nthree"), ("1", "\nfour\n")]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_columns_can_be_named_and_titles_go_in_front(tmp_path: Path, suffix: str) -> None:
    rows = [{"key": number, "head": row["title"], "body": row["text"]} for number, row in enumerate(ROWS)]
    found = read(write(tmp_path / f"in{suffix}", rows), text_column="body", id_column="key", title_column="head")
    assert [name for name, _ in found] == [str(number) for number in range(8)]
    assert found[0][1] == f"One\n\n{TEXTS[0]}"
    assert found[1][1] == TEXTS[1]
    assert found[3][1] == TEXTS[3]


def test_a_title_may_be_null_and_stand_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [{"title": None, "text": "a"}, {"title": "T", "text": ""}])
    assert [text for _, text in read(path, title_column="title")] == ["a", "T"]


@pytest.mark.parametrize(("suffix", "format"), [(".jsonl", "jsonl"), (".csv", "csv"), (".txt", "text")])
def test_standard_input(tmp_path: Path, suffix: str, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = write(tmp_path / f"in{suffix}", ROWS).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    source = TextSource(path="-", format=format)  # type: ignore[arg-type]
    assert not source.is_file
    assert source.size is None
    assert [row.embedded_text for row in source.documents()] == TEXTS


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_named_pipe_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(b"one\ntwo\n",))
    writer.start()
    source = TextSource(path=str(path), format="text")
    assert not source.is_file
    assert [row.embedded_text for row in source.documents()] == ["one", "two"]
    writer.join()


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv", "in.txt"])
def test_empty_files_have_no_texts(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert read(tmp_path / name) == []


def test_tables_without_rows_have_no_texts(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,text\n")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "in.parquet")
    assert read(tmp_path / "in.csv") == read(tmp_path / "in.parquet") == []


def test_a_byte_order_mark_and_a_missing_last_line_end(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n\n{"text": "b"}')
    (tmp_path / "in.txt").write_bytes(b"\xef\xbb\xbfa\nb")
    (tmp_path / "in.csv").write_bytes(b"\xef\xbb\xbftext\na\n\nb")
    for name in ("in.jsonl", "in.txt", "in.csv"):
        assert [text for _, text in read(tmp_path / name)] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"text": "cut', "not JSON (Invalid control character at"),
        (b'["text"]', "a JSON list"),
        (b'{"text" "x"}', "not JSON (Expecting ':' delimiter at character 9). Each line must be one JSON object."),
        (b"null", "a JSON null"),
        (b'{"id": 1, "body": "x"}', "no 'text' among its columns 'id', 'body'. Name the text column (text_column)"),
        (b'{"id": 1, "text": 7}', "'text' is int, not a string"),
        (b'{"id": 1, "text": null}', "'text' is null"),
        (b'{"id": 1, "text": " \\n"}', "the text is blank. Skip such rows (on_bad)"),
        (b'{"text": "no id"}', "no 'id' among"),
        (b'{"id": 1.5, "text": "x"}', "'id' is float"),
        (b'{"id": true, "text": "x"}', "'id' is bool"),
        (b'{"id": 1, "text": "\\ud83d"}', "half of a surrogate pair"),
        (b'{"id": 1, "text": "\xff"}', "not UTF-8 (byte 0xff)"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_line_is_named_or_skipped(tmp_path: Path, line: bytes, complaint: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"id": "a", "text": "good"}\n' + line + b'\n{"id": "b", "text": "good too"}\n')
    with pytest.raises(InputError) as raised:
        read(path)
    assert str(raised.value).startswith(f"{path}, line 2: ")
    assert complaint in str(raised.value)
    texts, complaints = problems(path)
    assert texts == ["good", "good too"]
    assert complaints == [str(raised.value)]


def test_bad_rows_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b'id,text\n1,"two\nlines"\n2\n3,"x"y\n4,\n5,\xff\n6,good\n7,"never closed\n')
    texts, complaints = problems(path)
    assert texts == ["two\nlines", "good"]
    assert [complaint.split(": ")[0].removeprefix(f"{path}, ") for complaint in complaints] == [
        "line 4",
        "line 5",
        "line 6",
        "line 7",
        "line 9",
    ]
    assert "1 fields where the header has 2" in complaints[0]


def test_bad_rows_of_parquet_and_text(tmp_path: Path) -> None:
    texts, complaints = problems(write(tmp_path / "in.parquet", [{"text": "a"}, {"text": None}, {"text": "c"}]))
    assert texts == ["a", "c"]
    assert "row 2: 'text' is null" in complaints[0]
    (tmp_path / "in.txt").write_bytes(b"a\n\n\xff\nd\n")
    texts, complaints = problems(tmp_path / "in.txt")
    assert texts == ["a", "d"]
    assert ["line 2" in complaints[0], "line 3" in complaints[1]] == [True, True]


def test_blank_texts_can_be_allowed(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"a\n\n  \n")
    assert [text for _, text in read(tmp_path / "in.txt", allow_empty=True)] == ["a", "", "  "]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("option", ["text", "id", "title"])
def test_a_missing_column_is_no_matter_of_single_rows(tmp_path: Path, suffix: str, option: str) -> None:
    path = write(tmp_path / f"in{suffix}", ROWS)
    options = {f"{option}_column": "nowhere"}
    with pytest.raises(InputError, match=rf"no column 'nowhere', but 'id', 'title', 'text'.*\({option}_column\)"):
        problems(path, **options)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "in.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "in.xml").write_bytes(b"[]")
    (tmp_path / "twice.csv").write_bytes(b"text,text\na,b\n")
    for name, options, complaint in (
        ("missing.jsonl", {}, "does not exist"),
        (".", {}, "is a folder"),
        ("in.parquet", {}, "as parquet"),
        ("in.xml", {}, "Unknown input format"),
        ("in.xml", {"format": "xml"}, "give one of jsonl, json, csv"),
        ("in.xml", {"format": "text", "id_column": "id"}, "no columns"),
        ("twice.csv", {}, "2 columns 'text'"),
    ):
        with pytest.raises(InputError, match=complaint):
            read(tmp_path / name, **options)
    with pytest.raises(InputError, match="Parquet can be read from a file only"):
        TextSource(path="-", format="parquet")
    with pytest.raises(InputError, match="no name to tell its format"):
        TextSource(path="-")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt"])
def test_a_file_is_never_in_memory_as_a_whole(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"in{suffix}", [{"text": "x" * 10_000}] * 2000)
    tracemalloc.start()
    try:
        assert sum(1 for _ in TextSource(path=str(path)).documents()) == 2000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 19_000_000
    assert peak < 1_000_000


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_title_column_need_not_be_there_if_it_is_not_required(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"in{suffix}", [{"text": "a"}])
    assert read(path, title_column="title", title_required=False) == [("0", "a")]


@pytest.mark.parametrize(
    "bad", ["# exported", '{"version": 1}', '{"text": "no end', '{"id": null, "text": "x"}', "\xff"]
)
def test_a_bad_first_line_does_not_lose_the_ids_of_others(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(bad.encode("latin-1") + b'\n{"id": "a", "text": "one"}\n{"id": "b", "text": "two"}\n')
    found: list[InputError] = []
    rows = list(TextSource(path=str(path)).documents(found.append))
    assert [row.id for row in rows] == ["a", "b"]
    assert [str(problem).startswith(f"{path}, line 1: ") for problem in found] == [True]


def test_a_bad_first_line_with_an_id_does_not_ask_ids_of_others(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [{"id": "a", "text": None}, {"text": "one"}, {"text": "two"}])
    assert [row.id for row in TextSource(path=str(path)).documents(lambda _: None)] == ["1", "2"]


def test_ids_of_some_rows_only_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [{"text": "one"}, {"id": "b", "text": "two"}])
    for skip in (None, lambda _: None):
        with pytest.raises(InputError, match=r"line 2: an 'id', where the rows before it have none.*id_column"):
            list(TextSource(path=str(path)).documents(skip))
    named = TextSource(path=str(path), id_column="id")
    assert [row.id for row in named.documents(lambda _: None)] == ["b"]
    path = write(tmp_path / "in.jsonl", [{"id": "b", "text": "two"}, {"text": "one"}])
    with pytest.raises(InputError, match=r"line 2: no 'id' among .* where the rows before it have one"):
        read(path)


def test_the_old_name_works_for_one_release(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [{"id": "a", "title": "On", "text": "one"}])
    sys.modules.pop("grace_retrieval.files", None)
    with pytest.warns(DeprecationWarning, match="is now grace_retrieval.corpus.files.TextSource"):
        from grace_retrieval.files import Record, TextSource
    assert list(TextSource(path=str(path), title_column="title").records()) == [Record(id="a", text="On\n\none")]
