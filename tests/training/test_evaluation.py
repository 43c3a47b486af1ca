"""Evaluations: what a file says, what a sample keeps, and figures against independent ones."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grace_retrieval import GraceEmbedder, InputError

pytest.importorskip("ir_measures", reason="pip install 'grace-retrieval[bench]'")

from grace_benchmarks.retrieval.collection import Collection
from grace_training.evaluation.measure import HeldOutTexts, measure_health, measure_perplexity, measure_set
from grace_training.evaluation.plan import (
    ClassificationSet,
    Evaluation,
    HeldOut,
    RetrievalSet,
    SimilaritySet,
    load_evaluation,
)
from grace_training.evaluation.sets import draw_collection, load_set

SUBJECTS = ("tides", "bread", "moon", "honey", "iron", "glass", "rain", "snow", "salt", "wool")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def unit(model: GraceEmbedder, texts: list[str], role: str = "document") -> Any:
    encode = model.encode_query if role == "query" else model.encode_document
    return np.asarray(encode(texts, rationale=False), dtype=np.float64)


@pytest.fixture
def collection() -> Collection:
    """Thirty documents and ten queries: query i has i + 1 relevant documents, and one judged as irrelevant."""
    documents = {f"d{i}": f"document {i} on {SUBJECTS[i % 10]}" for i in range(30)}
    queries = {f"q{i}": f"what of {SUBJECTS[i]}" for i in range(10)}
    qrels = {f"q{i}": {**{f"d{(3 * i + j) % 30}": 1 for j in range(i + 1)}, "d29": 0} for i in range(10)}
    return Collection(name="ten", documents=documents, queries=queries, qrels=qrels)


@pytest.mark.parametrize("seed", range(5))
def test_a_sample_keeps_every_relevant_document_and_fills_up_with_others(collection: Collection, seed: int) -> None:
    drawn = draw_collection(collection, queries=3, documents=20, most_relevant=4, choose=random.Random(seed))
    relevant = {d for q in drawn.queries for d, score in collection.qrels[q].items() if score > 0}
    assert len(drawn.queries) == 3 and set(drawn.queries) <= {"q0", "q1", "q2", "q3"}
    assert relevant <= set(drawn.documents) and len(drawn.documents) == 20
    assert list(drawn.documents) == [d for d in collection.documents if d in drawn.documents], "in their order"
    assert drawn.qrels == {q: collection.qrels[q] for q in drawn.queries}
    again = draw_collection(collection, queries=3, documents=20, most_relevant=4, choose=random.Random(seed))
    assert again.digest == drawn.digest


def test_relevant_documents_are_kept_where_they_are_more_than_was_asked_for(collection: Collection) -> None:
    drawn = draw_collection(collection, queries=None, documents=2, choose=random.Random(0))
    relevant = {d for judged in collection.qrels.values() for d, score in judged.items() if score > 0}
    assert set(drawn.documents) == relevant and len(relevant) > 2
    whole = draw_collection(collection, queries=None, documents=None, choose=random.Random(0))
    assert whole.digest == collection.digest
    with pytest.raises(InputError, match="every query has more than most_relevant=0"):
        draw_collection(collection, queries=1, documents=1, most_relevant=0, choose=random.Random(0))


def test_retrieval_is_what_ir_measures_says(ending_embedder: GraceEmbedder, tmp_path: Path) -> None:
    import ir_measures
    from ir_measures import Qrel, ScoredDoc, nDCG

    rows = [
        {"id": str(i), "title": f"on {word}", "abstract": f"about {word}, at length"} for i, word in enumerate(SUBJECTS)
    ]
    path = write_lines(tmp_path / "pairs" / "pairs.jsonl", rows)
    entry = RetrievalSet(name="pairs", path=path, document="abstract", queries=6, documents=8)
    loaded = load_set(entry, Evaluation(name="e", sets=(entry,)))
    found = measure_set(ending_embedder, loaded, "text")
    data = loaded.describe()
    assert (data["queries"], data["documents"], data["name"]) == (6, 8, "pairs")

    ids = {row["title"]: row["id"] for row in rows} | {row["abstract"]: row["id"] for row in rows}
    queries, documents = list(loaded.texts["query"]), list(loaded.texts["document"])
    scores = unit(ending_embedder, queries, "query") @ unit(ending_embedder, documents).T
    run = [
        ScoredDoc(ids[q], ids[d], float(scores[i, j])) for i, q in enumerate(queries) for j, d in enumerate(documents)
    ]
    expected = ir_measures.calc_aggregate([nDCG @ 10], [Qrel(ids[q], ids[q], 1) for q in queries], run)
    assert found["value"] == pytest.approx(expected[nDCG @ 10], abs=1e-4)
    assert found["per_query"]["query"] == [ids[q] for q in queries]
    assert np.mean(found["per_query"]["nDCG@10"]) == pytest.approx(found["value"], abs=1e-4)
    assert found["new_tokens"] == {"query": 0.0, "document": 0.0}


def test_centred_figures_are_those_of_vectors_without_their_means(
    ending_embedder: GraceEmbedder, tmp_path: Path
) -> None:
    import ir_measures
    from ir_measures import Qrel, ScoredDoc, nDCG

    rows = [{"id": str(i), "title": f"on {word}", "text": f"{word}, at length"} for i, word in enumerate(SUBJECTS)]
    entry = RetrievalSet(name="pairs", path=write_lines(tmp_path / "pairs.jsonl", rows))
    loaded = load_set(entry, Evaluation(name="e", sets=(entry,)))
    found = measure_set(ending_embedder, loaded, "echo", centre=10)
    assert found["value"] == measure_set(ending_embedder, loaded, "echo")["value"]
    assert "centred" not in measure_set(ending_embedder, loaded, "echo")

    documents, queries = [row["text"] for row in rows], [row["title"] for row in rows]
    vectors = np.asarray(ending_embedder.encode_document(documents, rationale="echo"), dtype=np.float64)
    asked = np.asarray(ending_embedder.encode_query([*queries, *documents], rationale="echo"), dtype=np.float64)
    words = asked[len(rows) :]  # texts as short as these are their own first words
    moved = vectors - vectors.mean(0), asked[: len(rows)] - words.mean(0)
    moved = tuple(part / np.linalg.norm(part, axis=1, keepdims=True) for part in moved)
    run = [
        ScoredDoc(str(i), str(j), float(score))
        for i, row in enumerate(moved[1] @ moved[0].T)
        for j, score in enumerate(row)
    ]
    expected = ir_measures.calc_aggregate([nDCG @ 10], [Qrel(str(i), str(i), 1) for i in range(10)], run)
    assert found["centred"] == pytest.approx(expected[nDCG @ 10], abs=1e-4)
    assert found["centred"] != found["value"], "or it shows nothing"


def test_similarity_is_what_scipy_says(ending_embedder: GraceEmbedder, tmp_path: Path) -> None:
    from scipy.stats import spearmanr

    rows = [
        {"s1": f"on {a}", "s2": f"on {b}", "score": float(i % 4)}
        for i, (a, b) in enumerate(zip(SUBJECTS, SUBJECTS[3:] + SUBJECTS[:3], strict=True))
    ]
    entry = SimilaritySet(name="s", path=write_lines(tmp_path / "s.jsonl", rows))
    loaded = load_set(entry, Evaluation(name="e", sets=(entry,)))
    found = measure_set(ending_embedder, loaded, "text")
    first, second = (unit(ending_embedder, [row[name] for row in rows]) for name in ("s1", "s2"))
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(first, second, strict=True)]
    assert found["value"] == pytest.approx(spearmanr(cosines, [row["score"] for row in rows]).statistic, abs=1e-4)
    assert loaded.describe()["pairs"] == 10
    few = load_set(SimilaritySet(name="s", path=entry.path, pairs=4), Evaluation(name="e", sets=()))
    assert few.describe()["pairs"] == 4
    with pytest.raises(InputError, match="the same cosine"):
        loaded.measure({"document": np.ones((20, 3), dtype=np.float32)})


def test_classification_is_what_brute_force_says(ending_embedder: GraceEmbedder, tmp_path: Path) -> None:
    rows = [{"text": f"{verb} the {word}", "label": verb} for verb in ("see", "eat", "melt") for word in SUBJECTS]
    path = write_lines(tmp_path / "c.jsonl", rows)
    entry = ClassificationSet(name="c", train=path, test=path, train_per_label=6, test_per_label=4, neighbours=3)
    loaded = load_set(entry, Evaluation(name="e", sets=(entry,), seed=1))
    found = measure_set(ending_embedder, loaded, "text")
    data = loaded.describe()
    assert (data["train"], data["test"], data["labels"]) == (18, 12, 3)
    texts = list(loaded.texts["document"])
    vectors, labels = unit(ending_embedder, texts), [text.split()[0] for text in texts]
    assert [labels[:18].count(verb) for verb in ("see", "eat", "melt")] == [6, 6, 6]
    right = 0
    for vector, label in zip(vectors[18:], labels[18:], strict=True):
        nearest = np.argsort(-(vectors[:18] @ vector), kind="stable")[:3]
        votes = [labels[place] for place in nearest]
        # Of as many votes, the first label in the alphabet wins.
        right += label == min(set(votes), key=lambda name: (-votes.count(name), name))
    assert found["value"] == pytest.approx(right / 12, abs=1e-4)


def test_health_is_that_of_the_same_texts_embedded_by_hand(ending_embedder: GraceEmbedder, tmp_path: Path) -> None:
    rows = [{"title": f"on {word}", "abstract": f"about {word}, at length"} for word in SUBJECTS]
    held_out = HeldOut(path=write_lines(tmp_path / "h.jsonl", rows), texts=6)
    texts = HeldOutTexts(Evaluation(name="e", sets=(), held_out=held_out))
    assert len(texts.documents) == 6
    ending_embedder.writer.configure(max_new_tokens=12)
    found = measure_health(ending_embedder, texts, "rationale")
    written = ending_embedder.rationales(texts.documents, "document")
    asked = ending_embedder.rationales(texts.queries, "query")
    assert found["tokens"] == pytest.approx(np.mean([len(r.token_ids) for r in written]), abs=1e-3)
    assert found["query_truncated"] == pytest.approx(np.mean([r.truncated for r in asked]), abs=1e-3)
    vectors = np.asarray(ending_embedder.encode_document(texts.documents), dtype=np.float64)
    cosines = vectors @ vectors.T
    assert found["mean_cosine"] == pytest.approx(cosines[np.triu_indices(6, 1)].mean(), abs=1e-3)
    assert measure_health(ending_embedder, texts, "text").keys() == {"mean_cosine", "effective_rank", "uniformity"}
    assert measure_perplexity(ending_embedder, texts.texts)["perplexity"] > 1


def test_a_model_saved_without_rationales_writes_them_where_they_are_measured(
    ending_embedder: GraceEmbedder, tmp_path: Path
) -> None:
    rows = [{"s1": f"on {word}", "s2": f"of {word}", "score": float(i)} for i, word in enumerate(SUBJECTS)]
    entry = SimilaritySet(name="s", path=write_lines(tmp_path / "s.jsonl", rows))
    loaded = load_set(entry, Evaluation(name="e", sets=()))
    ending_embedder.writer.rationale = False
    found = measure_set(ending_embedder, loaded, "rationale")
    assert found["new_tokens"]["document"] > 0


def test_the_evaluation_that_comes_along_can_be_read() -> None:
    nano = load_evaluation("nano")
    names = [entry.name for entry in nano.sets]
    assert names == ["arxiv", "nfcorpus", "cranfield", "medline", "covidqa", "stsb", "banking77"]
    assert nano.held_out is not None and nano.held_out.texts == 64
    assert [entry.name for entry in load_evaluation("nano-small").sets] == ["arxiv", "medline", "stsb"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sets: [", "is not YAML"),
        ("just words", "is no evaluation"),
        ("sets: [{kind: magic, name: a}]", "a set is a mapping with a kind"),
        ("sets: [{kind: retrieval, name: a, path: b, limit: 3}]", "unknown limit; it has name, path"),
        ("sets: [{kind: retrieval, name: a}]", "missing 1 required"),
        ("sets: [{kind: retrieval, name: a, path: b, queries: 0}]", "queries=0: give a whole number, 1 or more"),
        ("sets: []\ncolumns: [hybrid]", "give some of text, echo and rationale"),
        ("sets: []\ncentre: true", "centre=True: give 0"),
        ("sets: []\ncentre: 5", "centre=5: give 0"),
        ("sets: []\ncentre: -1", "centre=-1: give a whole number, 0 or more"),
        ("sets: []\nmax_new_tokens: -1", "max_new_tokens=-1"),
        ("sets: [{kind: similarity, name: a, path: b}, {kind: retrieval, name: a, path: c}]", "the same name"),
    ],
)
def test_what_is_no_evaluation(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "evaluation.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        load_evaluation(path)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "s.jsonl", [{"s1": "a", "s2": "b"}])
    entry = SimilaritySet(name="s", path=path)
    with pytest.raises(InputError, match="has no column 'score', but s1, s2"):
        load_set(entry, Evaluation(name="e", sets=(entry,)))
