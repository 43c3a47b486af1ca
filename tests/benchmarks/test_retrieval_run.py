"""Retrieval measured with real tiny models: rows against numbers made by hand, resumption, mteb tasks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ir_measures", reason="the extra 'bench' is not installed")

from grace_benchmarks.record import Row, RowFile, read_rows
from grace_benchmarks.retrieval.collection import Collection, Pairs, load_pairs, load_task
from grace_benchmarks.retrieval.metrics import per_query, significance
from grace_benchmarks.retrieval.rankers import BM25, fuse
from grace_benchmarks.retrieval.run import RetrievalOptions, run_retrieval
from grace_benchmarks.retrieval.tasks import is_collection, run_tasks, tasks_by_name
from grace_benchmarks.running import run_retrieval_part
from grace_benchmarks.suites import RetrievalPart
from grace_retrieval import GraceEmbedder, InputError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_policy: Path) -> Path:
    """A saved GraceEmbedder with short rationales."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    GraceEmbedder(tiny_policy, cache=None, max_new_tokens=6, device="cpu").save(str(folder))
    return folder


@pytest.fixture(scope="module")
def collection() -> Collection:
    return load_pairs(Pairs(path="demo"))


@pytest.fixture(scope="module")
def rows(model: Path, collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    folder = tmp_path_factory.mktemp("rows")
    options = RetrievalOptions(
        models=(str(model),), max_new_tokens=(2, 6), cache=str(folder / "cache.sqlite"), device="cpu"
    )
    out = RowFile(folder / "retrieval.jsonl")
    assert run_retrieval([collection], options, out=out) == 0
    assert run_retrieval([collection], options, out=RowFile(out.path)) == 6, "nothing is measured twice"
    return read_rows(out.path)


def test_one_row_a_system(rows: list[Row]) -> None:
    assert [(row["model"], row["column"], row["max_new_tokens"]) for row in rows] == [
        ("BM25", "bm25", None),
        ("tiny", "text", None),
        ("tiny", "rationale", 2),
        ("tiny", "hybrid", 2),
        ("tiny", "rationale", 6),
        ("tiny", "hybrid", 6),
    ]
    assert len({row["key"] for row in rows}) == 6


@pytest.mark.parametrize("rationale", [False, True])
def test_figures_are_those_of_the_embedder(
    rows: list[Row], model: Path, collection: Collection, rationale: bool
) -> None:
    embedder = GraceEmbedder(str(model), cache=None, device="cpu")
    documents = embedder.encode_document(list(collection.documents.values()), rationale=rationale)
    queries = embedder.encode_query(list(collection.queries.values()), rationale=rationale)
    ids, scores = list(collection.documents), queries @ documents.T
    ranking = {
        q: dict(zip(ids, map(float, row), strict=True)) for q, row in zip(collection.queries, scores, strict=True)
    }
    expected = per_query(collection, ranking)
    (row,) = (
        r for r in rows if r["column"] == ("rationale" if rationale else "text") and r["max_new_tokens"] in (None, 6)
    )
    np.testing.assert_allclose(row["per_query"]["nDCG@10"], expected["nDCG@10"], atol=1e-3)
    assert row["nDCG@10"] == pytest.approx(np.mean(expected["nDCG@10"]), abs=1e-4)
    assert row["identity"] == embedder.vector_identity(rationale).digest()


def test_columns_that_take_rationales_apart(model: Path, collection: Collection, tmp_path: Path) -> None:
    columns = ("text", "echo", "crossed", "bm25-documents", "bm25-queries", "bm25-both")
    cache = str(tmp_path / "cache.sqlite")
    options = RetrievalOptions(models=(str(model),), columns=columns, cache=cache, device="cpu")
    run_retrieval([collection], options, out=RowFile(tmp_path / "rows.jsonl"))
    centred = replace(options, columns=("text", "crossed"), centre=True)
    run_retrieval([collection], centred, out=RowFile(tmp_path / "rows.jsonl"))
    found = {(row["column"], row.get("centre", False)): row for row in read_rows(tmp_path / "rows.jsonl")}
    assert set(found) == {*((column, False) for column in columns), ("text", True), ("crossed", True)}
    embedder = GraceEmbedder(str(model), cache=cache, device="cpu")
    texts, asked = list(collection.documents.values()), list(collection.queries.values())

    def expected(queries: np.ndarray, documents: np.ndarray) -> list[float]:
        scores, ids = queries @ documents.T, list(collection.documents)
        ranking = {
            q: dict(zip(ids, map(float, row), strict=True)) for q, row in zip(collection.queries, scores, strict=True)
        }
        return per_query(collection, ranking)["nDCG@10"]

    for column, modes in (("echo", ("echo", "echo")), ("crossed", (True, False))):
        pair = embedder.encode_query(asked, rationale=modes[1]), embedder.encode_document(texts, rationale=modes[0])
        np.testing.assert_allclose(found[column, False]["per_query"]["nDCG@10"], expected(*pair), atol=1e-3)
    embedder.fit_centring(texts, rationale=False)
    pair = embedder.encode_query(asked, rationale=False), embedder.encode_document(texts, rationale=False)
    np.testing.assert_allclose(found["text", True]["per_query"]["nDCG@10"], expected(*pair), atol=1e-3)
    written = [row.text for row in embedder.rationales(texts, "document")]
    words = BM25(
        replace(
            collection, documents=dict(zip(collection.documents, map("{}\n{}".format, texts, written), strict=True))
        )
    )
    both = per_query(collection, words.rank())["nDCG@10"]
    assert found["bm25-documents", False]["per_query"]["nDCG@10"] == pytest.approx(both)


def test_costs_say_how_long_rationales_are(rows: list[Row]) -> None:
    tokens = {(row["column"], row["max_new_tokens"]): row["rationale_tokens"] for row in rows}
    assert tokens["text", None] == 0
    assert 0 < tokens["rationale", 2] <= 2 < tokens["rationale", 6] <= 6
    assert all(row["query_ms"] > 0 for row in rows)
    assert all(row["documents_per_second"] > 0 for row in rows[1:])


def test_systems_are_compared_over_the_same_queries(rows: list[Row]) -> None:
    text, rationale = rows[1], rows[2]
    against = {(other["model"], other["column"]): other for other in rationale["against"]}
    assert set(against) == {("BM25", "bm25"), ("tiny", "text")}
    found = against["tiny", "text"]
    assert found["difference"] == pytest.approx(rationale["nDCG@10"] - text["nDCG@10"], abs=2e-4)
    assert found["p"] == significance(rationale["per_query"]["nDCG@10"], text["per_query"]["nDCG@10"])


def test_an_interrupted_run_embeds_nothing_again(model: Path, collection: Collection, tmp_path: Path) -> None:
    options = RetrievalOptions(
        models=(str(model),), columns=("rationale",), cache=str(tmp_path / "cache.sqlite"), device="cpu"
    )
    seen: list[int] = []

    def stop(row: Row) -> None:
        seen.append(row["texts_seen_by_model"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_retrieval([collection], options, out=RowFile(tmp_path / "a.jsonl"), say=stop)
    assert len(read_rows(tmp_path / "a.jsonl")) == 1, "the row that was finished is kept"
    run_retrieval(
        [collection], options, out=RowFile(tmp_path / "b.jsonl"), say=lambda r: seen.append(r["texts_seen_by_model"])
    )
    assert seen == [56, 0], "the rationales of the first run came from the cache"


def test_any_sentence_transformers_model(collection: Collection, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({word for text in collection.documents.values() for word in text.split()})
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, **{w: i + 1 for i, w in enumerate(words)}}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    weights = np.random.default_rng(0).standard_normal((len(words) + 1, 16)).astype(np.float32)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)]).save(str(tmp_path / "words"))
    out = RowFile(tmp_path / "rows.jsonl")
    options = RetrievalOptions(models=(str(tmp_path / "words"),), columns=("bm25", "text", "hybrid"), device="cpu")
    run_retrieval([collection], options, out=out)
    found = read_rows(out.path)
    assert [(row["model"], row["column"]) for row in found] == [
        ("BM25", "bm25"),
        ("words", "text"),
        ("words", "hybrid"),
    ]
    assert found[1]["identity"] is None
    with pytest.raises(InputError, match="writes no rationales"):
        run_retrieval(
            [collection], RetrievalOptions(models=(str(tmp_path / "words"),), columns=("rationale",)), out=out
        )


def test_options_are_checked() -> None:
    with pytest.raises(InputError, match="give some of bm25, text, echo, rationale, crossed"):
        RetrievalOptions(columns=("bm26",))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="positive"):
        RetrievalOptions(max_new_tokens=(0,))


@pytest.fixture
def tiny_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, collection: Collection) -> Any:
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path))
    pytest.importorskip("mteb", reason="the extra 'bench' is not installed")
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    def rows(texts: Any) -> Dataset:
        return Dataset.from_dict({"id": list(texts), "text": list(texts.values())})

    class DemoRetrieval(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="DemoRetrieval", description="Demo.", reference=None, dataset={"path": "none", "revision": "1"},
            type="Retrieval", category="t2t", modalities=["text"], eval_splits=["test"], eval_langs=["eng-Latn"],
            main_score="ndcg_at_10", date=None, domains=None, task_subtypes=None, license=None,
            annotations_creators=None, dialect=None, sample_creation=None, bibtex_citation=None,
        )  # fmt: skip

        def load_data(self, **_: Any) -> None:
            self.dataset = {
                "default": {
                    "test": {
                        "corpus": rows(collection.documents),
                        "queries": rows(collection.queries),
                        "relevant_docs": {q: dict(docs) for q, docs in collection.qrels.items()},
                        "top_ranked": None,
                    }
                }
            }
            self.data_loaded = True

    return DemoRetrieval()


def test_an_mteb_task_is_searched_like_any_collection_and_as_mteb_does(
    tiny_task: Any, rows: list[Row], model: Path, collection: Collection, tmp_path: Path
) -> None:
    assert is_collection(tiny_task)
    loaded = load_task(tiny_task)
    assert dict(loaded.documents) == dict(collection.documents)
    out = RowFile(tmp_path / "rows.jsonl")
    options = RetrievalOptions(models=(str(model),), cache=None, device="cpu")
    assert run_tasks([tiny_task], options, out=out) == 0
    assert run_tasks([tiny_task], options, out=out) == 2
    text, rationale = read_rows(out.path)
    assert [text["column"], rationale["column"]] == ["text", "rationale"]
    ours = {row["column"]: row["nDCG@10"] for row in rows if row["max_new_tokens"] in (None, 6)}
    assert text["main_score"] == pytest.approx(ours["text"], abs=2e-3)
    assert rationale["main_score"] == pytest.approx(ours["rationale"], abs=2e-3)


def test_a_task_that_fails_does_not_end_the_run(tiny_task: Any, model: Path, tmp_path: Path) -> None:
    class Broken(type(tiny_task)):  # type: ignore[misc]
        def load_data(self, **_: Any) -> None:
            raise OSError("no network")

    options = RetrievalOptions(models=(str(model),), columns=("text",), cache=None, device="cpu")
    out = RowFile(tmp_path / "rows.jsonl")
    run_tasks([Broken()], options, out=out)
    run_tasks([tiny_task], RetrievalOptions(models=(str(model),), columns=("text",), cache=None, run=2), out=out)
    failed, good = read_rows(out.path)
    assert (failed["status"], good["status"]) == ("failed", "ok")
    assert "no network" in failed["failed"]
    with pytest.raises(InputError, match=r"Cannot load the task DemoRetrieval.*no network"):
        load_task(Broken())


def test_a_task_that_cannot_be_loaded_is_a_failed_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    part = RetrievalPart(pairs=({"path": "demo"},), tasks=("NFCorpus",), columns=("bm25",))
    for _ in range(2):
        run_retrieval_part(part, tmp_path)
    failed, good = read_rows(tmp_path / "retrieval.jsonl")
    assert (failed["task"], failed["status"]) == ("NFCorpus", "failed")
    assert "Cannot load the task NFCorpus" in failed["failed"]
    assert (good["column"], good["status"]) == ("bm25", "ok")


def test_unknown_tasks_are_named() -> None:
    with pytest.raises(InputError, match="has no task NoSuchTask"):
        tasks_by_name(["NFCorpus", "NoSuchTask"])


def test_bm25_finds_only_documents_that_share_a_word() -> None:
    queries = {"none": "zeppelin", "blank": " ", "stop": "to be or not to be", "one": "glass zeppelin"}
    documents = {"a": "Bread rises.", "b": "Glass is made of sand.", "empty": ""}
    qrels = {query: {"a" if query != "one" else "b": 1} for query in queries}
    made = Collection(name="made", documents=documents, queries=queries, qrels=qrels)
    ranking = BM25(made).rank()
    assert {query: list(docs) for query, docs in ranking.items()} == {"none": [], "blank": [], "stop": [], "one": ["b"]}
    assert per_query(made, ranking)["recall@100"] == [0.0, 0.0, 0.0, 1.0]
    assert list(fuse(ranking, {"none": {"a": 0.5}})["none"]) == ["a"]
    wordless = Collection(name="made", documents={"a": " ", "b": "the"}, queries=queries, qrels=qrels)
    ranking = BM25(wordless).rank()
    assert not any(ranking.values())
    assert per_query(wordless, ranking)["nDCG@10"] == [0.0] * 4
    assert BM25(wordless).query_ms() >= 0
