"""What can be explained besides strings: the real classes of LangChain, LlamaIndex and GraceIndex."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from grace_retrieval import GraceIndex
from grace_retrieval.corpus.document import Document
from grace_retrieval.indexing import BuildOptions, build_index

if TYPE_CHECKING:
    from grace_retrieval import GraceEmbedder

MakeEmbedder = Callable[..., "GraceEmbedder"]

QUERY = "What causes ocean tides?"
TEXTS = ["The moon's gravity pulls on the oceans.", "Bread rises because yeast makes gas.", "Honey does not spoil."]


@pytest.fixture
def embedder(make_embedder: MakeEmbedder) -> GraceEmbedder:
    return make_embedder(cache="memory")


class TestLangChain:
    def test_documents_of_a_search_are_explained(self, embedder: GraceEmbedder) -> None:
        from langchain_core.documents import Document as LangChainDocument
        from langchain_core.vectorstores import InMemoryVectorStore

        store = InMemoryVectorStore(embedder)  # an Embeddings by method names
        store.add_documents(
            [
                LangChainDocument(page_content=text, id=f"d{i}", metadata={"title": f"T{i}"})
                for i, text in enumerate(TEXTS)
            ]
        )
        scored = store.similarity_search_with_score(QUERY, k=3)
        before = embedder.writer.engine.statistics()["new_tokens"]
        found = embedder.explain(QUERY, scored)
        assert embedder.writer.engine.statistics()["new_tokens"] == before
        np.testing.assert_allclose([one.score for one in found], [score for _, score in scored], atol=1e-6)
        assert [one.rank for one in found] == [1, 2, 3]
        assert [(one.id, one.title) for one in found] == [(d.id, d.metadata["title"]) for d, _ in scored]
        plain = embedder.explain(QUERY, store.similarity_search(QUERY, k=3))
        assert [one.document.text for one in plain] == [document.page_content for document, _ in scored]
        alone = embedder.explain(QUERY, scored[0][0])
        assert alone.score == pytest.approx(found[0].score, abs=1e-6)
        assert embedder.explain(QUERY, scored[0]).id == alone.id


class TestLlamaIndex:
    def test_nodes_are_explained_as_llama_index_embeds_them(self, embedder: GraceEmbedder) -> None:
        from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode

        node = TextNode(
            text=TEXTS[0],
            id_="n1",
            metadata={"title": "Tides", "secret": "x"},
            excluded_embed_metadata_keys=["secret"],
        )
        embedded = node.get_content(metadata_mode=MetadataMode.EMBED)
        assert "Tides" in embedded and "secret" not in embedded
        scored = NodeWithScore(node=node, score=0.5)
        expected = float(embedder.encode_document(embedded) @ embedder.encode_query(QUERY))
        for source in (node, scored):
            found = embedder.explain(QUERY, source)
            assert found.document.text == embedded and (found.id, found.title) == ("n1", "Tides")
            assert found.score == pytest.approx(expected, abs=1e-6)
        assert [one.id for one in embedder.explain(QUERY, [scored, TextNode(text="Bread.", id_="n2")])] == ["n1", "n2"]

    def test_results_of_a_retriever_are_explained(self, embedder: GraceEmbedder) -> None:
        from llama_index.core import VectorStoreIndex
        from llama_index.core.embeddings import MockEmbedding
        from llama_index.core.schema import TextNode

        index = VectorStoreIndex(
            [TextNode(text=text, id_=f"n{i}") for i, text in enumerate(TEXTS)], embed_model=MockEmbedding(embed_dim=4)
        )
        nodes = index.as_retriever(similarity_top_k=2).retrieve(QUERY)
        found = embedder.explain(QUERY, nodes)
        assert [one.id for one in found] == [node.node_id for node in nodes] and len(found) == 2


class TestGraceIndex:
    @pytest.mark.parametrize("rationale", [True, False])
    def test_hits_are_explained_with_the_rationales_of_the_index(
        self, make_embedder: MakeEmbedder, tmp_path: Path, rationale: bool
    ) -> None:
        pytest.importorskip("faiss")
        documents = [Document(id=f"d{i}", text=text, title="Title" if i else None) for i, text in enumerate(TEXTS)]
        builder = make_embedder()
        build_index(documents, tmp_path / "index", embedder=builder, options=BuildOptions(rationale=rationale))
        embedder = make_embedder(cache="memory")
        with GraceIndex.open(tmp_path / "index", embedder=embedder) as index:
            result = index.search(QUERY, k=3)
            before = embedder.writer.engine.statistics()["new_tokens"]
            found = embedder.explain(QUERY, result.hits, rationale=index.manifest.rationale)
        # Nothing but the query was written, and that for the search.
        assert embedder.writer.engine.statistics()["new_tokens"] == before
        np.testing.assert_allclose([one.score for one in found], result.scores, atol=1e-6)
        assert [one.id for one in found] == result.ids and [one.rank for one in found] == [1, 2, 3]
        assert [one.document.rationale.text for one in found] == [rationale.text for rationale in result.rationales]
        assert {one.title for one in found} == {None, "Title"}

    def test_documents_of_a_corpus_are_explained(self, embedder: GraceEmbedder) -> None:
        found = embedder.explain(QUERY, Document(id="d", text="The moon.", title="Tides"))
        assert (found.document.text, found.id, found.title) == ("Tides\n\nThe moon.", "d", "Tides")


def test_explaining_imports_neither_library() -> None:
    code = (
        "import sys, grace_retrieval.explain.explainer, grace_retrieval.explain.html\n"
        "print(sorted({'langchain_core', 'llama_index', 'faiss', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
