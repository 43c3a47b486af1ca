"""Haystack: both components in real pipelines, serialised and asynchronous."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("haystack", reason="the extra 'haystack' is not installed")

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

from grace_retrieval import InputError, ModelMismatchError
from haystack_integrations.components.embedders.grace import GraceDocumentEmbedder, GraceTextEmbedder

TINY = str(Path(__file__).parents[1] / "fixtures" / "tiny-policy")
OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "device": "cpu"}
DOCUMENTS = [
    Document(content="The moon pulls on\nthe sea.", meta={"title": "Tides"}),
    Document(content="Bread rises by yeast.", meta={"title": None}),
    Document(content=None, meta={"title": "A picture"}),
]


def search(store: InMemoryDocumentStore, options: dict[str, Any]) -> Pipeline:
    pipeline = Pipeline()
    pipeline.add_component("embedder", GraceTextEmbedder(TINY, options))
    pipeline.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=2))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    return pipeline


@pytest.fixture
def store() -> InMemoryDocumentStore:
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    store.write_documents(GraceDocumentEmbedder(TINY, OPTIONS).run(DOCUMENTS[:2])["documents"])
    return store


def test_a_pipeline_ranks_as_the_vectors_do(store: InMemoryDocumentStore) -> None:
    query = "Why are there tides?"
    found = search(store, OPTIONS).run({"embedder": {"text": query}})["retriever"]["documents"]
    embedder = GraceTextEmbedder(TINY, OPTIONS).settings.embedder
    scores = embedder.encode_document([d.content for d in DOCUMENTS[:2]]) @ embedder.encode_query(query)
    assert [document.score for document in found] == pytest.approx(sorted(scores, reverse=True), abs=1e-4)
    assert found[0].content == DOCUMENTS[int(np.argmax(scores))].content


def test_a_pipeline_comes_back_from_yaml_as_configuration(store: InMemoryDocumentStore) -> None:
    pipeline = search(store, {**OPTIONS, "system_prompt": "Say what it is."})
    text = pipeline.dumps()
    assert "GraceTextEmbedder" in text and "Say what it is." in text and len(text) < 3000
    again = Pipeline.loads(text)
    embedder = again.get_component("embedder")
    assert embedder.settings == pipeline.get_component("embedder").settings
    documents = GraceDocumentEmbedder(TINY, OPTIONS, meta_fields_to_embed=["title"], embedding_separator=" | ")
    assert GraceDocumentEmbedder.from_dict(documents.to_dict()).to_dict() == documents.to_dict()


def test_meta_fields_are_embedded_and_documents_are_copied() -> None:
    component = GraceDocumentEmbedder(TINY, OPTIONS, meta_fields_to_embed=["title"])
    component.warm_up()
    found = component.run(DOCUMENTS)["documents"]
    expected = component.settings.embedder.encode_document(
        ["Tides\nThe moon pulls on\nthe sea.", "Bread rises by yeast.", "A picture\n"]
    )
    np.testing.assert_allclose([document.embedding for document in found], expected, atol=1e-6)
    assert [document.id for document in found] == [document.id for document in DOCUMENTS]
    assert all(document.embedding is None for document in DOCUMENTS)
    assert component.run([])["documents"] == []


async def test_async_components_give_the_same(store: InMemoryDocumentStore) -> None:
    component = GraceDocumentEmbedder(TINY, OPTIONS)
    found = (await component.run_async(DOCUMENTS))["documents"]
    assert [d.embedding for d in found] == [d.embedding for d in component.run(DOCUMENTS)["documents"]]
    text = GraceTextEmbedder(TINY, OPTIONS)
    assert await text.run_async("tides") == text.run("tides")


@pytest.mark.parametrize("wrong", ["a text", ["a text"], None])
def test_what_are_no_documents_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match="takes a list of Documents; for a query use GraceTextEmbedder"):
        GraceDocumentEmbedder(TINY, OPTIONS).run(wrong)


def test_a_store_made_with_something_else_is_refused(tmp_path: Path) -> None:
    guarded = {**OPTIONS, "identity_file": str(tmp_path / "identity.json")}
    store = InMemoryDocumentStore()
    store.write_documents(GraceDocumentEmbedder(TINY, guarded).run(DOCUMENTS[:2])["documents"])
    store.save_to_disk(str(tmp_path / "store.json"))
    again = InMemoryDocumentStore.load_from_disk(str(tmp_path / "store.json"))
    assert len(search(again, guarded).run({"embedder": {"text": "tides"}})["retriever"]["documents"]) == 2
    wrong = search(again, {**guarded, "truncate_dim": 16})
    with pytest.raises(Exception, match="dimension: 16 here, 32 there") as caught:
        wrong.run({"embedder": {"text": "tides"}})
    causes = [caught.value, caught.value.__cause__]
    assert any(isinstance(cause, ModelMismatchError) for cause in causes)
