"""GraceEmbedder in the tools that measure and search: sentence-transformers' own and mteb."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.util import semantic_search

if TYPE_CHECKING:
    from grace_retrieval import GraceEmbedder

MakeEmbedder = Callable[..., "GraceEmbedder"]

CORPUS = {
    "d1": "The moon's gravity pulls on the oceans, raising two bulges of water.",
    "d2": "Bread rises because yeast makes gas.",
    "d3": "Ada Lovelace wrote the first program.",
    "d4": "Iron and oxygen make rust.",
    "d5": "Air pushes the wing up.",
    "d6": "Retrieval systems rank documents for a query.",
    "d7": "def mean(xs):\n    return sum(xs) / len(xs)",
    "d8": "naïve café — 東京 🚀",
}
QUERIES = {"q1": "What causes ocean tides?", "q2": "Why does bread rise?", "q3": "Who was Ada Lovelace?"}
RELEVANT = {"q1": {"d1", "d4"}, "q2": {"d2"}, "q3": {"d3", "d8", "d5"}}


def ndcg_at_10(scores: np.ndarray) -> float:
    """Mean nDCG of queries (rows) over documents (columns), by its definition."""
    values = []
    for row, relevant in zip(scores, RELEVANT.values(), strict=True):
        ranked = [list(CORPUS)[place] for place in np.argsort(-row)][:10]
        gain = sum(1 / np.log2(2 + place) for place, name in enumerate(ranked) if name in relevant)
        values.append(gain / sum(1 / np.log2(2 + place) for place in range(len(relevant))))
    return float(np.mean(values))


@pytest.fixture
def embedder(make_embedder: MakeEmbedder) -> GraceEmbedder:
    return make_embedder(cache="memory")


@pytest.fixture
def expected(make_embedder: MakeEmbedder) -> float:
    plain = make_embedder(cache=None)
    scores = plain.encode_query(list(QUERIES.values())) @ plain.encode_document(list(CORPUS.values())).T
    mixed_up = plain.encode(list(QUERIES.values())) @ plain.encode(list(CORPUS.values())).T
    assert abs(ndcg_at_10(scores) - ndcg_at_10(mixed_up)) > 1e-3, "or a mistaken role would not be seen"
    return ndcg_at_10(scores)


def test_semantic_search_ranks_by_cosine(embedder: GraceEmbedder) -> None:
    queries = embedder.encode_query(list(QUERIES.values()), convert_to_tensor=True)
    documents = embedder.encode_document(list(CORPUS.values()), convert_to_tensor=True)
    cosine = (queries @ documents.T).numpy()
    np.testing.assert_allclose(embedder.similarity(queries, documents).numpy(), cosine, atol=1e-6)
    for row, hits in zip(cosine, semantic_search(queries, documents, top_k=5), strict=True):
        assert [hit["corpus_id"] for hit in hits] == np.argsort(-row)[:5].tolist()
        np.testing.assert_allclose([hit["score"] for hit in hits], np.sort(row)[::-1][:5], atol=1e-6)


def test_the_evaluator_of_sentence_transformers_asks_with_the_prompts_of_roles(
    embedder: GraceEmbedder, expected: float
) -> None:
    evaluator = InformationRetrievalEvaluator(QUERIES, CORPUS, RELEVANT, name="tiny", write_csv=False)
    result = evaluator(embedder)
    assert result["tiny_cosine_ndcg@10"] == pytest.approx(expected, abs=1e-6)
    assert embedder.writer.engine.statistics()["texts"] == len(QUERIES) + len(CORPUS)


def test_mteb_evaluates_a_retrieval_task(
    embedder: GraceEmbedder, expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path))
    mteb = pytest.importorskip("mteb", reason="the extra 'bench' is not installed")
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class TinyRetrieval(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="TinyRetrieval",
            description="Eight documents.",
            reference=None,
            dataset={"path": "none", "revision": "1"},
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
            date=None,
            domains=None,
            task_subtypes=None,
            license=None,
            annotations_creators=None,
            dialect=None,
            sample_creation=None,
            bibtex_citation=None,
        )

        def load_data(self, **_: Any) -> None:
            self.dataset = {
                "default": {
                    "test": {
                        "corpus": Dataset.from_dict({"id": list(CORPUS), "text": list(CORPUS.values())}),
                        "queries": Dataset.from_dict({"id": list(QUERIES), "text": list(QUERIES.values())}),
                        "relevant_docs": {q: dict.fromkeys(sorted(found), 1) for q, found in RELEVANT.items()},
                        "top_ranked": None,
                    }
                }
            }
            self.data_loaded = True

    result = mteb.evaluate(embedder, TinyRetrieval(), cache=None, show_progress_bar=False, co2_tracker=False)
    (scores,) = result.task_results[0].scores["test"]
    assert scores["ndcg_at_10"] == pytest.approx(expected, abs=1e-4)
    assert result.model_name == "tiny-policy"
    assert embedder.writer.engine.statistics()["texts"] == len(QUERIES) + len(CORPUS)
