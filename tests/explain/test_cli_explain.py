"""`grace explain` and `grace report`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from grace_retrieval.cli import app
from grace_retrieval.corpus.document import Document
from grace_retrieval.indexing import build_index

if TYPE_CHECKING:
    from click.testing import Result

    from grace_retrieval import GraceEmbedder

MakeEmbedder = Callable[..., "GraceEmbedder"]

TEXTS = ["The moon's gravity pulls.", "Bread <b>rises</b>.", "Honey.", "<script>alert(1)</script> bees"]


def grace(*arguments: object, **options: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Path:
    from grace_retrieval import GraceEmbedder

    folder = tmp_path_factory.mktemp("models") / "short"
    GraceEmbedder(tiny_policy, cache=None, max_new_tokens=6, device="cpu").save(str(folder))
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    pytest.importorskip("faiss")
    from grace_retrieval import GraceEmbedder

    folder = tmp_path_factory.mktemp("indexes") / "index"
    documents = [Document(id=f"d{i}", text=text, title="Title") for i, text in enumerate(TEXTS)]
    build_index(documents, folder, embedder=GraceEmbedder(model, cache=None, device="cpu"))
    return folder


class TestExplain:
    def test_documents_are_explained_best_first(self, model: Path) -> None:
        done = grace("explain", "tide", *TEXTS, "--model", model)
        assert done.exit_code == 0, done.output
        assert done.stdout.count("score 0.") + done.stdout.count("score -") == 4
        assert [done.stdout.index(f"rank {rank} of 4") for rank in (1, 2, 3, 4)] == sorted(
            done.stdout.index(f"rank {rank} of 4") for rank in (1, 2, 3, 4)
        )

    def test_json_is_one_document_in_the_order_given(self, model: Path, make_embedder: MakeEmbedder) -> None:
        done = grace("explain", "tide", *TEXTS[:2], "--model", model, "--json", "--truncate-dim", 9)
        found = json.loads(done.stdout)
        expected = make_embedder(model, max_new_tokens=None, truncate_dim=9).explain("tide", TEXTS[:2])
        assert found["query"] == "tide" and [one["document"]["text"] for one in found["explanations"]] == TEXTS[:2]
        assert [one["score"] for one in found["explanations"]] == pytest.approx([e.score for e in expected], abs=1e-6)
        assert found["explanations"][0]["dimension"] == 9

    def test_texts_come_from_files_too(self, model: Path, tmp_path: Path) -> None:
        file = tmp_path / "docs.jsonl"
        file.write_text('{"id": "a", "text": "one"}\n{"id": "b", "text": "two"}\n', encoding="utf-8")
        done = grace("explain", "tide", f"@{file}", "@@home", "--model", model, "--json")
        found = json.loads(done.stdout)["explanations"]
        assert [(one["id"], one["document"]["text"]) for one in found] == [("a", "one"), ("b", "two"), (None, "@home")]

    def test_texts_alone(self, model: Path) -> None:
        found = json.loads(grace("explain", "tide", "x", "--model", model, "--json", "--no-rationale").stdout)
        assert found["explanations"][0]["document"]["rationale"] == ""

    def test_hits_of_an_index(self, index: Path, make_embedder: MakeEmbedder) -> None:
        found = json.loads(grace("explain", "tide", "--index", index, "-k", 2, "--json").stdout)["explanations"]
        from grace_retrieval import GraceIndex

        with GraceIndex.open(index) as opened:
            result = opened.search("tide", k=2)
        assert [one["id"] for one in found] == result.ids
        assert [one["score"] for one in found] == pytest.approx(result.scores.tolist(), abs=1e-6)
        assert [one["document"]["rationale"] for one in found] == [one.text for one in result.rationales]

    def test_a_page_is_written_once(self, model: Path, tmp_path: Path) -> None:
        page = tmp_path / "page.html"
        done = grace("explain", "tide", "x", "--model", model, "--html", page)
        assert done.exit_code == 0 and done.stdout == f"Wrote {page}.\n"
        first = page.read_text(encoding="utf-8")
        assert first.startswith("<!DOCTYPE html>")
        again = grace("explain", "tide", "y", "--model", model, "--html", page)
        assert again.exit_code == 1 and "--overwrite" in again.stderr and page.read_text(encoding="utf-8") == first
        assert grace("explain", "tide", "x", "y", "--model", model, "--html", page, "--overwrite").exit_code == 0
        assert page.read_text(encoding="utf-8").count('<details class="hit"') == 2
        assert [file.name for file in tmp_path.glob("page*")] == ["page.html"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "Give documents, or an --index"),
            (["x", "--index", "somewhere"], "Give documents, or an --index"),
            (["--index", "somewhere", "--no-rationale"], "An index is searched as it was built"),
            (["x", "--json", "--html", "a.html"], "--json prints, and --html writes a file"),
            (["x", "--html", "missing-folder/a.html"], "Make the folder missing-folder first"),
            (["@missing.jsonl"], "missing.jsonl does not exist"),
            (["--index", "missing-index"], "missing-index"),
        ],
    )
    def test_what_cannot_be_is_one_line(self, arguments: list[str], message: str) -> None:
        done = grace("explain", "tide", *arguments)
        assert done.exit_code == 1 and message in done.stderr and done.stderr.count("\n") == 1


class TestReport:
    def test_every_query_and_hit_is_on_the_page(self, index: Path, tmp_path: Path) -> None:
        queries = tmp_path / "queries.jsonl"
        queries.write_text('{"_id": "1", "text": "tide"}\n{"_id": "2", "text": "<i>bread</i>"}\n', encoding="utf-8")
        page = tmp_path / "out.html"
        done = grace("report", "--index", index, "--queries", queries, "--html", page, "--k", 3)
        assert done.exit_code == 0, done.output
        html = page.read_text(encoding="utf-8")
        assert html.count('<details class="hit"') == 6 and html.count('<section class="answer"') == 2
        assert "<i>bread" not in html and "&lt;i&gt;bread&lt;/i&gt;" in html
        assert "written by the model" in html and "2 queries, up to 3 hits each, 4 documents in index" in html
        again = grace("report", "--index", index, "--queries", queries, "--html", page)
        assert again.exit_code == 1 and "--overwrite" in again.stderr and page.read_text(encoding="utf-8") == html

    def test_a_report_that_fails_leaves_nothing(
        self, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from grace_retrieval import GraceEmbedder, InputError

        def fail(*_: object, **__: object) -> None:
            raise InputError("no more")

        monkeypatch.setattr(GraceEmbedder, "explain", fail)
        queries = tmp_path / "queries.txt"
        queries.write_text("tide\n", encoding="utf-8")
        done = grace("report", "--index", index, "--queries", queries, "--html", tmp_path / "out.html")
        assert done.exit_code == 1 and "no more" in done.stderr
        assert [file.name for file in tmp_path.glob("out.html*")] == []

    @pytest.mark.parametrize(
        ("content", "message"), [("", "holds no queries"), ('{"query": "a"}\n', "no 'text' among its columns")]
    )
    def test_queries_that_cannot_be_read(self, index: Path, tmp_path: Path, content: str, message: str) -> None:
        queries = tmp_path / "queries.jsonl"
        queries.write_text(content, encoding="utf-8")
        done = grace("report", "--index", index, "--queries", queries, "--html", tmp_path / "out.html")
        assert done.exit_code == 1 and message in done.stderr
