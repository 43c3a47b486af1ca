"""Collections: BEIR folders, pairs and mteb tasks, and what is wrong with some of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grace_benchmarks.retrieval.collection import Pairs, load_beir, load_pairs
from grace_retrieval import InputError

CORPUS = [
    {"_id": "d1", "title": "Tides", "text": "The moon pulls on the oceans."},
    {"_id": "d2", "title": "", "text": "Yeast makes gas."},
    {"_id": "q3", "title": "A claim", "text": "Rust is iron and oxygen."},
]
QUERIES = [
    {"_id": "q1", "text": "why are there tides"},
    {"_id": "q2", "text": "why does dough rise"},
    {"_id": "q3", "text": "Rust is iron and oxygen."},
    {"_id": "q4", "text": "of another split"},
]


def write(folder: Path, qrels: list[tuple[str, str, int]], corpus: Any = CORPUS, queries: Any = QUERIES) -> Path:
    (folder / "qrels").mkdir(parents=True)
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in qrels)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_beir_folder(tmp_path: Path) -> None:
    found = load_beir(write(tmp_path / "made", [("q1", "d1", 2), ("q2", "d2", 1), ("q3", "d2", 1)]))
    assert found.documents == {
        "d1": "Tides\n\nThe moon pulls on the oceans.",
        "d2": "Yeast makes gas.",
        "q3": "A claim\n\nRust is iron and oxygen.",
    }
    assert list(found.queries) == ["q1", "q2", "q3"], "only the judged ones"
    assert found.qrels["q1"] == {"d1": 2}
    assert found.excluded == {"q3": "q3"}, "the document that is the query itself"
    assert found.name == "made"


def test_relevant_documents_that_are_not_there_are_counted_and_said(tmp_path: Path) -> None:
    folder = write(tmp_path / "made", [("q1", "d1", 1), ("q1", "d9", 1), ("q2", "d2", 1)])
    with pytest.warns(UserWarning, match=r"made: 1 relevant documents are not in the corpus \(e.g. 'd9'\)"):
        found = load_beir(folder)
    assert found.describe()["unknown_relevant"] == 1
    assert found.qrels["q1"] == {"d1": 1, "d9": 1}, "it counts as missed"


def test_queries_without_relevant_documents_are_left_out_and_said(tmp_path: Path) -> None:
    folder = write(tmp_path / "made", [("q1", "d1", 1), ("q2", "d2", 0)])
    with pytest.warns(UserWarning, match=r"1 queries without a relevant document \(e.g. 'q2'\) are left out"):
        found = load_beir(folder)
    assert list(found.queries) == ["q1"]
    assert found.describe()["queries_without_relevant"] == 1


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ([("q1", "x1", 1), ("q2", "x2", 1)], "none of the relevant documents are in the corpus"),
        ([("q1", "d1", 0)], "none of the queries have relevant documents"),
        ([("q1", "d1", 1), ("nobody", "d2", 1)], "1 judged queries have no text, e.g. 'nobody'"),
        ([], "0 judged queries"),
    ],
)
def test_judgements_of_something_else_are_refused(
    tmp_path: Path, qrels: list[tuple[str, str, int]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_beir(write(tmp_path / "made", qrels))


def test_files_that_are_missing_or_malformed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Cannot read .*corpus.jsonl.*BEIR layout"):
        load_beir(tmp_path)
    folder = write(tmp_path / "a", [("q1", "d1", 1)], corpus=[{"_id": "d1", "text": 1}])
    with pytest.raises(InputError, match=r"corpus\.jsonl, line 1: 'text' is int.*In BEIR layout each line is"):
        load_beir(folder)
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "te')
    with pytest.raises(InputError, match=r"line 1: not JSON"):
        load_beir(folder)
    folder = write(tmp_path / "b", [("q1", "d1", 1)])
    (folder / "qrels" / "test.tsv").write_text("q1\td1\t1\nq1\td2\t1\n")
    with pytest.raises(InputError, match="columns query-id, corpus-id and score"):
        load_beir(folder)
    with pytest.raises(InputError, match=r"dev\.tsv"):
        load_beir(folder, split="dev")


def test_pairs_of_the_bundled_corpus_and_of_a_file(tmp_path: Path) -> None:
    demo = load_pairs(Pairs(path="demo"))
    assert demo.queries["tides"] == "Why the sea rises twice a day"
    assert demo.documents["tides"].startswith("The Moon pulls")
    assert demo.qrels["tides"] == {"tides": 1}
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"id": "a", "question": "What?", "answer": "That."}\n')
    found = load_pairs(Pairs(path=str(file), query="question", document="answer"))
    assert (found.queries, found.documents) == ({"a": "What?"}, {"a": "That."})
    with pytest.raises(InputError, match="no 'text' among its columns"):
        load_pairs(Pairs(path=str(file)))


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    one = load_beir(write(tmp_path / "a", [("q1", "d1", 1)]))
    same = load_beir(write(tmp_path / "b", [("q1", "d1", 1)]))
    other = load_beir(write(tmp_path / "c", [("q1", "d1", 2)]))
    assert one.digest == same.digest != other.digest


def test_byte_order_marks_blank_lines_and_whole_number_ids_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "made", [("1", "7", 1)])
    for name, line in (
        ("corpus.jsonl", '{"_id": 7, "text": "Tides."}'),
        ("queries.jsonl", '{"_id": 1, "text": "sea"}'),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n\n1\t7\t1.0\n \n"),
    ):
        (folder / name).write_text(f"\ufeff{line}\n\n \n\n", encoding="utf-8")
    found = load_beir(folder)
    assert (found.documents, found.queries, found.qrels) == ({"7": "Tides."}, {"1": "sea"}, {"1": {"7": 1}})


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_files_that_are_not_utf8_are_refused_with_their_line(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "made", [("q1", "d1", 1)]) / name
    path.write_bytes(path.read_bytes().replace(b"d1", b"d\xf6").replace(b"why", b"wh\xf6"))
    line = 2 if name.endswith(".tsv") else 1
    with pytest.raises(InputError, match=rf"{Path(name).name}, line {line}: not UTF-8 \(byte 0xf6\)"):
        load_beir(tmp_path / "made")


@pytest.mark.parametrize("score", ["0.5", "high", "", "nan", "inf"])
def test_scores_that_are_no_whole_numbers_are_refused_with_their_line(tmp_path: Path, score: str) -> None:
    folder = write(tmp_path / "made", [("q1", "d1", 1), ("q2", "d2", score)])  # type: ignore[list-item]
    with pytest.raises(InputError, match=rf"test\.tsv, line 3: score '{score}'. Give a whole number"):
        load_beir(folder)


def test_judgements_that_contradict_one_another_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 3: query 'q1' and document 'd1' have the scores 1 and 2"):
        load_beir(write(tmp_path / "made", [("q1", "d1", 1), ("q1", "d1", 2)]))


def test_titles_may_be_absent(tmp_path: Path) -> None:
    corpus = [{"_id": "d1", "text": "a"}, {"_id": "d2", "title": "T", "text": "b"}, {"_id": "d3", "text": "c"}]
    found = load_beir(write(tmp_path / "made", [("q1", "d1", 1)], corpus=corpus))
    assert found.documents == {"d1": "a", "d2": "T\n\nb", "d3": "c"}


@pytest.mark.parametrize("name", ["corpus", "queries"])
def test_an_id_of_two_contents_is_refused_and_a_repeated_row_is_said(tmp_path: Path, name: str) -> None:
    given = {"corpus": CORPUS, "queries": QUERIES}
    first = given[name][0]
    again = {**given, name: [*given[name], {**first, "text": "Something else."}]}
    with pytest.raises(InputError, match=rf"{name}\.jsonl: the id '{first['_id']}' comes twice, with different"):
        load_beir(write(tmp_path / "a", [("q1", "d1", 1)], **again))
    same = {**given, name: [*given[name], first]}
    with pytest.warns(UserWarning, match=rf"1 rows repeat an id and its content \(e.g. '{first['_id']}'\)"):
        found = load_beir(write(tmp_path / "b", [("q1", "d1", 1)], **same))
    assert found.digest == load_beir(write(tmp_path / "c", [("q1", "d1", 1)])).digest


@pytest.mark.parametrize("column", ["title", "text"])
def test_pairs_of_one_id_and_two_contents_are_refused(tmp_path: Path, column: str) -> None:
    row = {"id": "a", "title": "What?", "text": "That."}
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, column: "Another."}) + "\n")
    with pytest.raises(InputError, match=rf"column '{column}': the id 'a' comes twice"):
        load_pairs(Pairs(path=str(path)))
