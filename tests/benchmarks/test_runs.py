"""Runs of TREC: figures of ours and of others are those of trec_eval's own bindings, ties and all."""

from __future__ import annotations

import gzip
import random
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from typer.testing import CliRunner

pytrec_eval = pytest.importorskip("pytrec_eval", reason="the extra 'bench' is not installed")

from grace_benchmarks.record import Row, read_rows  # noqa: E402
from grace_retrieval.cli import app  # noqa: E402
from grace_retrieval.corpus.runs import read_run, run_lines, trec_order  # noqa: E402
from grace_retrieval.errors import InputError  # noqa: E402

if TYPE_CHECKING:
    from click.testing import Result

WORDS = "tide moon bread yeast glass sand bridge river honey bees engine steam copper wire lamp storm".split()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`bench(*arguments)`: `grace bench retrieval` in a folder with collection.tsv, queries.tsv and qrels.txt."""
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    texts = {f"d{n}": " ".join(draw.choices(WORDS, k=6)) for n in range(120)}
    queries = {f"{n}": " ".join(draw.choices(WORDS, k=2)) for n in range(8)}
    Path("collection.tsv").write_text("".join(f"{name}\t{text}\n" for name, text in texts.items()))
    Path("queries.tsv").write_text("".join(f"{name}\t{text}\n" for name, text in queries.items()))
    judged = [(q, d, draw.choice([0, 1, 1, 2])) for q in queries for d in draw.sample(sorted(texts), 12)]
    Path("qrels.txt").write_text("".join(f"{q} 0 {d} {relevance}\n" for q, d, relevance in judged))
    return lambda *arguments: CliRunner().invoke(app, ["bench", "retrieval", *map(str, arguments), "--out", "rows"])


FILES = ("--documents", "collection.tsv", "--queries", "queries.tsv", "--qrels", "qrels.txt")


def rows(result: Result) -> list[Row]:
    assert result.exit_code == 0, result.output
    return read_rows(Path("rows/retrieval.jsonl"))


def by_trec_eval(run: Path) -> dict[str, float]:
    """Means over all judged queries (trec_eval -c) of what trec_eval's bindings say of a file that they read."""
    with open("qrels.txt") as judged, open(run) as found:
        qrels, scores = pytrec_eval.parse_qrel(judged), pytrec_eval.parse_run(found)
    values = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.100"}).evaluate(scores)
    return {
        "nDCG@10": sum(of["ndcg_cut_10"] for of in values.values()) / len(qrels),
        "recall@100": sum(of["recall_100"] for of in values.values()) / len(qrels),
    }


def figures(row: Row) -> dict[str, float]:
    return {name: row[name] for name in ("nDCG@10", "recall@100")}


def test_our_run_has_the_same_figures_in_trec_eval(bench: Callable[..., Result]) -> None:
    (row,) = rows(bench(*FILES, "--columns", "bm25", "--runs", "runs"))
    (path,) = Path("runs").iterdir()
    assert re.fullmatch(r"qrels\.txt_BM25_bm25_[0-9a-f]{8}\.trec", path.name)
    assert 0 < row["nDCG@10"] < 1
    assert figures(row) == pytest.approx(by_trec_eval(path), abs=1e-4)
    assert row["data"]["documents"] == 120
    scored = rows(bench(*FILES, "--run", path))[1]
    assert (scored["model"], scored["column"], scored["run_file"]) == ("BM25-bm25", "run", path.name)
    assert figures(scored) == figures(row)
    assert scored["per_query"] == row["per_query"]
    assert [(other["model"], other["difference"]) for other in scored["against"]] == [("BM25", 0.0)]
    alone = rows(bench("--qrels", "qrels.txt", "--run", path))[2]
    assert figures(alone) == figures(row)
    assert (alone["data"]["documents"], alone["against"]) == (0, [])


def test_a_row_without_its_run_is_measured_again_and_not_added_again(bench: Callable[..., Result]) -> None:
    assert len(rows(bench(*FILES, "--columns", "bm25"))) == 1
    assert len(rows(bench(*FILES, "--columns", "bm25", "--runs", "runs"))) == 1
    (path,) = Path("runs").iterdir()
    path.unlink()
    assert len(rows(bench(*FILES, "--columns", "bm25", "--runs", "runs"))) == 1
    assert path.exists()


def test_a_run_of_another_retriever_has_the_figures_of_trec_eval(bench: Callable[..., Result]) -> None:
    """Words shared, counted by scikit-learn: many ties, ranks that say nothing, lines in no order, few documents."""
    from sklearn.feature_extraction.text import CountVectorizer

    texts, queries = (
        dict(line.split("\t") for line in Path(name).read_text().splitlines())
        for name in ("collection.tsv", "queries.tsv")
    )
    counts = CountVectorizer(binary=True).fit(texts.values())
    shared = (counts.transform(queries.values()) @ counts.transform(texts.values()).T).toarray()
    lines = [
        f"{query} Q0 {name} 1 {score * 1e3 + 1e-7 * place:.17g} theirs\n"  # the last part is lost in single precision
        for query, found in zip(list(queries)[:-1], shared[:-1], strict=True)
        for place, (name, score) in enumerate(zip(texts, found, strict=True))
        if score
    ]
    random.Random(1).shuffle(lines)
    Path("their.run").write_text("".join(lines))
    Path("their.run.gz").write_bytes(gzip.compress("".join(lines).encode()))
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # the command prints them
        result = bench(*FILES, "--run", "their.run")
    assert "nothing for 1 of 8 judged queries (e.g. '7'), which count as 0" in result.stderr
    row = rows(result)[0]
    assert figures(row) == pytest.approx(by_trec_eval(Path("their.run")), abs=1e-4)
    assert (row["model"], row["queries_without_hits"]) == ("theirs", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        again = rows(bench(*FILES, "--run", "their.run.gz"))
    assert len(again) == 1, "the same run under another name"


def test_the_order_is_that_of_trec_eval() -> None:
    """Each of many random rankings with ties: where trec_eval finds the only relevant document, there it stands."""
    draw = random.Random(0)
    names = ["a", "B", "é", "10", "9", "a1", "z"]
    for _ in range(200):
        scores = {name: draw.choice([1.0, 1.0 + 1e-9, 1.0 + 1e-6, -2.5, 1e30]) for name in names}
        wanted = draw.choice(names)
        found = pytrec_eval.RelevanceEvaluator({"q": {wanted: 1}}, {"recip_rank"}).evaluate({"q": scores})
        place = [name for name, _ in trec_order(scores)].index(wanted) + 1
        assert found["q"]["recip_rank"] == pytest.approx(1 / place)
        lines = [line.split() for line in run_lines("q", scores, "t")]
        back = {name: float(np.float32(score)) for _, _, name, _, score, _ in lines}
        assert back == {name: float(np.float32(score)) for name, score in scores.items()}
        assert [name for name, _ in trec_order(back)] == [line[2] for line in lines]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("1 Q0 d1 1 2.5 t\n1 Q0 d1 2 2.0 t\n", "r.trec, line 2: the document 'd1' comes twice for the query '1'"),
        ("1 Q0 d1 1 2.5\n", "r.trec, line 1: 5 fields. Give a run of TREC"),
        ("1 Q0 d1 1 high t\n", "r.trec, line 1: score 'high'"),
        ("1 Q0 d1 1 nan t\n", "r.trec, line 1: score 'nan'. Give a finite number"),
        ("1 Q0 d1 1 1e39 t\n", "r.trec, line 1: score '1e39'"),
        ("1 Q0 d\xff 1 1 t\n", "r.trec, line 1: not UTF-8 (byte 0xff)"),
        ("\n", "r.trec holds no lines"),
    ],
)
def test_runs_that_are_none(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "r.trec").write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError) as raised:
        read_run(tmp_path / "r.trec")
    assert complaint in str(raised.value)


def test_ids_that_cannot_stand_in_a_run() -> None:
    for name in ("a b", "", "a\tb", "a\n"):
        with pytest.raises(InputError, match="is empty or holds a blank"):
            run_lines("q", {name: 1.0}, "t")
    assert run_lines("q", {"a\u00a0b": 1.0}, "t") == ["q Q0 a\u00a0b 1 1 t\n"], "only blanks of ASCII end a field"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--qrels", "qrels.txt"), "go together: --documents and --queries is missing"),
        (("--documents", "collection.tsv", "--run", "x"), "go together: --queries and --qrels is missing"),
        (("--qrels", "qrels.txt", "--run", "r.trec", "--columns", "bm25"), "--qrels alone scores --run files"),
        (("--pairs", "demo", "--split", "dev"), "--split would do nothing: it goes with --data."),
        ((*FILES, "--run", "r.trec", "--runs", "runs"), "--runs would do nothing"),
        ((*FILES, "--run", "nowhere.trec"), "Cannot read nowhere.trec: No such file or directory."),
        ((*FILES, "--run", "r.trec"), "none of its 1 queries is judged in qrels.txt"),
        ((*FILES, "--pairs", "demo", "--run", "r.trec"), "Runs are scored over one collection, and 2 are given"),
        (("--documents", "text.txt", *FILES[2:], "--columns", "bm25"), "text.txt, line 1: no id for judgements"),
    ],
)
def test_what_does_not_go_together(bench: Callable[..., Result], arguments: tuple[Any, ...], complaint: str) -> None:
    Path("r.trec").write_text("x Q0 d1 1 1 t\n")
    Path("text.txt").write_text("a text a line\n")
    result = bench(*arguments)
    assert result.exit_code == 1
    assert complaint in result.stderr


def test_the_number_of_a_run_is_still_read_from_the_option_that_it_had(bench: Callable[..., Result]) -> None:
    result = bench(*FILES, "--columns", "bm25", "--run", "2")
    assert "--run 2 is now --run-number 2" in result.stderr
    assert [row["run"] for row in rows(result)] == [2]
    assert [row["run"] for row in rows(bench(*FILES, "--columns", "bm25", "--run-number", "3"))] == [2, 3]


def test_equal_texts_are_counted(bench: Callable[..., Result]) -> None:
    with open("collection.tsv", "a") as stream:
        text = Path("collection.tsv").read_text().splitlines()[0].split("\t")[1]
        stream.write(f"again\t{text}\n")
    (row,) = rows(bench(*FILES, "--columns", "bm25"))
    assert (row["data"]["documents"], row["data"]["equal_texts"]) == (121, 1)


def test_splits(bench: Callable[..., Result]) -> None:
    Path("beir/qrels").mkdir(parents=True)
    Path("beir/corpus.jsonl").write_text('{"_id": "a", "text": "tide"}\n{"_id": "b", "text": "moon"}\n')
    Path("beir/queries.jsonl").write_text('{"_id": "q", "text": "moon"}\n')
    Path("beir/qrels/dev.tsv").write_text("query-id\tcorpus-id\tscore\nq\tb\t1\n")
    (row,) = rows(bench("--data", "beir", "--split", "dev", "--columns", "bm25"))
    assert (row["data"]["name"], row["nDCG@10"]) == ("beir (dev)", 1.0)
    assert "Its splits are dev." in bench("--data", "beir").stderr


def test_blank_queries_and_documents_are_not_found_by_vectors() -> None:
    """As in an index: zeros are no direction."""
    from grace_benchmarks.retrieval.collection import Collection
    from grace_benchmarks.retrieval.rankers import rank_vectors

    collection = Collection(
        name="c", documents={"a": "", "b": "x", "c": "y"}, queries={"p": "", "q": "x"}, qrels={"q": {"b": 1}}
    )
    queries = np.array([[0, 0], [-1, 0]], dtype=np.float32)
    found = rank_vectors(collection, queries, np.array([[0, 0], [1, 0], [0, 1]], dtype=np.float32))
    assert {query: list(documents) for query, documents in found.items()} == {"p": [], "q": ["c", "b"]}
