"""`grace bench` says in the first second what can be known then: nothing is made up, read whole, loaded or measured.

What would come after is made so long, or so damaged, that no test would get past it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from typer.testing import CliRunner

from grace_retrieval.cli import app

if TYPE_CHECKING:
    from click.testing import Result

ENDLESS = ("ann", "--n", "1e9", "--dim", "1024")
"""Four terabytes of vectors."""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command, in a folder with a collection and a model that is damaged."""
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    folder = Path("beir")
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "d", "text": "Bread rises."}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "bread"}\n')
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    Path("pairs.jsonl").write_text('{"id": "p", "text": "Bread rises."}\n')
    Path("damaged").mkdir()
    Path("damaged", "config.json").write_text("{")
    Path("peer").mkdir()
    Path("peer", "modules.json").write_text("[]")
    return lambda *arguments: CliRunner().invoke(app, ["bench", *map(str, arguments)], prog_name="grace")


def assert_said(result: Result, message: str) -> None:
    assert result.exit_code == 1, result.output
    assert message in result.output
    assert result.output.count("\n") == 1, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (*ENDLESS, "--out", "file/rows"),
            "Cannot write to file/rows: file is a file. Give another folder with --out.",
        ),
        ((*ENDLESS, "--work", "file/work"), "Give another folder with --work."),
        ((*ENDLESS, "--factory", "Broken"), "FAISS cannot make an index 'Broken' of 1024 dimensions"),
        ((*ENDLESS, "--factory", "PQ7"), "FAISS cannot make an index 'PQ7' of 1024 dimensions"),
        ((*ENDLESS, "--factory", "IVF16,SQ8", "--search", "nprob=4"), "FAISS takes no search parameters 'nprob=4'"),
        ((*ENDLESS, "-k", "2000000000"), "k=2000000000: give a number from 1 to 1000000000"),
        (("retrieval", "--data", "beir", "--out", "file/rows"), "Cannot write to file/rows"),
        (("retrieval", "--data", "beir", "--runs", "file/runs"), "Give another folder with --runs."),
        (("retrieval", "--data", "beir", "--data", "nowhere"), "There is no collection in nowhere"),
        (("retrieval", "--data", "beir", "--split", "dev"), "Its splits are test."),
        (("retrieval", "--data", "beir", "--model", "./models/mine"), "'./models/mine' does not exist"),
        (("retrieval", "--data", "beir", "--model", "damaged", "--device", "tpu"), "device='tpu' cannot be used"),
        (("retrieval", "--data", "beir", "--model", "damaged", "--model", "peer"), "peer writes no rationales: leave"),
        (
            ("retrieval", "--data", "beir", "--model", "damaged", "--model", "WordLlama"),
            "WordLlama writes no rationales",
        ),
        (
            ("retrieval", "--data", "beir", "--columns", "text", "--model", "st:peer", "--engine-option", "threads=1"),
            "runs policies that write, and 'st:peer' is none",
        ),
        (("retrieval", "--data", "beir", "--model", "damaged", "--cache", "off"), "cache='off': give"),
        (
            ("retrieval", "--data", "beir", "--model", "damaged", "--run", "no.trec"),
            "Cannot read no.trec: No such file or directory.",
        ),
        (
            ("retrieval", "--documents", "beir/corpus.jsonl", "--queries", "beir/queries.jsonl", "--qrels", "no.txt"),
            "Cannot read no.txt: No such file or directory. Give a file of judgements.",
        ),
        (("retrieval", "--pairs", "pairs.jsonl:title:text", "--model", "damaged"), "no 'title' among its columns"),
        (("encode", "--model", "./nowhere"), "'./nowhere' does not exist"),
        (("encode", "--model", "peer"), "peer writes no rationales"),
        (("encode", "--model", "damaged", "--out", "file/rows"), "Cannot write to file/rows"),
    ],
)
def test_at_once(bench: Callable[..., Result], arguments: tuple[str, ...], message: str) -> None:
    assert_said(bench(*arguments), message)


def test_without_faiss(bench: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert_said(bench(*ENDLESS), "pip install 'grace-retrieval[cpu]'")


@pytest.mark.parametrize("module", ["ir_measures", "bm25s"])
def test_without_what_measures(bench: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    result = bench("retrieval", "--data", "beir", "--columns", "text,hybrid", "--model", "damaged")
    assert_said(result, f"needs {module!r}. Install it with: pip install 'grace-retrieval[bench]'")


def test_neighbours_and_queries_of_other_vectors(bench: Callable[..., Result]) -> None:
    np.save("base.npy", np.ones((50, 8), np.float32))
    np.save("queries.npy", np.ones((3, 8), np.float32))
    np.save("wide.npy", np.ones((3, 9), np.float32))
    np.save("truth.npy", np.full((3, 5), 50))
    given = ("ann", "--vectors", "base.npy", "--out", "out")
    assert_said(
        bench(*given, "--queries", "wide.npy"), "wide.npy has queries of 9 dimensions, and base.npy vectors of 8"
    )
    refused = bench(*given, "--queries", "queries.npy", "--truth", "truth.npy")
    assert_said(refused, "truth.npy holds neighbours of 3 queries, at places from 0 to 50")
    assert_said(bench(*given, "-k", "51"), "k=51: give a number from 1 to 50")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"retrieval": {"data": ["nowhere"]}}, "There is no collection in nowhere"),
        ({"retrieval": {"data": ["beir"], "columns": ["bm26"]}}, "give some of bm25"),
        ({"retrieval": {"data": ["beir"], "models": ["./nowhere"]}}, "'./nowhere' does not exist"),
        ({"encode": [{"budgets": [-1]}]}, "budgets=[-1]"),
        ({"encode": [{"model": "./nowhere"}]}, "'./nowhere' does not exist"),
    ],
)
def test_the_last_part_of_a_suite_before_its_first(
    bench: Callable[..., Result], parts: dict[str, object], message: str
) -> None:
    first = {"vectors": [{"n": 10**9, "dim": 1024}], "indexes": [{"factory": "Flat"}]}
    Path("mine.yaml").write_text(json.dumps({"ann": first, **parts}))
    assert_said(bench("suite", "mine.yaml", "--out", "out"), message)
    assert not Path("out").exists()


def test_a_report_that_could_not_be_drawn(bench: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert_said(bench("suite", "large", "--out", "out"), "A report needs 'matplotlib'")


def test_an_index_that_suits_one_of_two_matrices_is_measured(bench: Callable[..., Result]) -> None:
    suite = {
        "options": {"repeats": 3, "singles": 2},
        "vectors": [{"n": 60, "dim": 8, "queries": 5}, {"n": 60, "dim": 9, "queries": 5}],
        "indexes": [{"factory": "PQ4x4"}],
    }
    Path("mine.yaml").write_text(json.dumps({"ann": suite}))
    done = bench("suite", "mine.yaml", "--out", "out", "--work", "work", "--no-report")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in Path("out", "ann.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["ok", "failed"]
