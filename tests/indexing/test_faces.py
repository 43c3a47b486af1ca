"""An index inside LangChain and LlamaIndex, each in a real pipeline."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from grace_retrieval import GraceIndex, InputError
from grace_retrieval.indexing import Document, build_index
from tests.indexing.conftest import make_documents

if TYPE_CHECKING:
    from grace_retrieval import GraceEmbedder


@pytest.fixture
def index(make_embedder: Callable[..., GraceEmbedder], tmp_path: Path) -> Iterator[GraceIndex]:
    embedder = make_embedder(cache="memory")
    documents = [Document(id=d.id, text=d.text, title=d.title, metadata=d.metadata) for d in make_documents(40)]
    build_index(documents, tmp_path / "index", embedder=embedder)
    with GraceIndex.open(tmp_path / "index", embedder=embedder) as opened:
        yield opened


@pytest.fixture
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)


@pytest.mark.usefixtures("no_pickle")
def test_langchain_retrieval_chain(index: GraceIndex) -> None:
    pytest.importorskip("langchain_core")
    from langchain_core.language_models import FakeListChatModel
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_core.runnables import RunnableLambda, RunnablePassthrough

    retriever = index.as_langchain().as_retriever(search_kwargs={"k": 3})
    direct = index.search("bees and honey", k=3)
    seen: list[Any] = []

    def joined(documents: list[Any]) -> str:
        seen.extend(documents)
        return "\n".join(document.page_content for document in documents)

    chain = (
        {
            "context": retriever | RunnableLambda(joined),
            "question": RunnablePassthrough(),
        }
        | ChatPromptTemplate.from_template("{context}\n{question}")
        | FakeListChatModel(responses=["an answer"])
        | StrOutputParser()
    )
    assert chain.invoke("bees and honey") == "an answer"
    assert [document.id for document in seen] == direct.ids
    assert seen[0].page_content == direct.documents[0]
    hit = direct.hits[0]
    assert seen[0].metadata == {"title": hit.title, "rationale": hit.rationale.text, "score": hit.score, **hit.metadata}


def test_langchain_searches(index: GraceIndex) -> None:
    pytest.importorskip("langchain_core")
    store = index.as_langchain()
    direct = index.search("glass", k=4)
    assert [(d.id, s) for d, s in store.similarity_search_with_score("glass")] == list(
        zip(direct.ids, [hit.score for hit in direct.hits], strict=True)
    )
    vector = index.embed_queries(["glass"])[0].tolist()
    assert [d.id for d in store.similarity_search_by_vector(vector)] == direct.ids
    relevance = store.similarity_search_with_relevance_scores("glass", k=4, score_threshold=0.5)
    assert [score for _, score in relevance] == pytest.approx([(1 + hit.score) / 2 for hit in direct.hits])
    moons = store.similarity_search("glass", k=4, filter={"kind": "moon"})
    assert {document.metadata["kind"] for document in moons} == {"moon"}
    close = store.max_marginal_relevance_search("glass", k=4, lambda_mult=1.0)
    assert [d.id for d in close] == direct.ids
    varied = store.max_marginal_relevance_search("glass", k=4, fetch_k=30, lambda_mult=0.0)
    assert varied[0].id == direct.ids[0]
    assert [d.id for d in varied] != direct.ids
    with pytest.raises(InputError, match="grace index add"):
        store.add_texts(["a"])
    with pytest.raises(InputError, match="grace index build"):
        type(store).from_texts(["a"], None)  # type: ignore[arg-type]


async def test_langchain_async(index: GraceIndex) -> None:
    pytest.importorskip("langchain_core")
    found = await index.as_langchain().as_retriever(search_kwargs={"k": 2}).ainvoke("steam engine")
    assert [document.id for document in found] == index.search("steam engine", k=2).ids


@pytest.mark.usefixtures("no_pickle")
def test_llama_index_query_engine(index: GraceIndex) -> None:
    pytest.importorskip("llama_index.core")
    from llama_index.core import MockEmbedding, VectorStoreIndex
    from llama_index.core.llms import MockLLM
    from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters

    # The embedding of the pipeline is not asked: its vectors would have 3 dimensions.
    pipeline = VectorStoreIndex.from_vector_store(index.as_llama_index(), embed_model=MockEmbedding(embed_dim=3))
    direct = index.search("copper wire", k=3)
    answer = pipeline.as_query_engine(llm=MockLLM(), similarity_top_k=3).query("copper wire")
    assert [node.node_id for node in answer.source_nodes] == direct.ids
    assert [node.score for node in answer.source_nodes] == [hit.score for hit in direct.hits]
    node = answer.source_nodes[0].node
    assert node.metadata["rationale"] == direct.rationales[0].text
    from llama_index.core.schema import MetadataMode

    assert direct.rationales[0].text not in node.get_content(MetadataMode.LLM)
    assert direct.rationales[0].text not in node.get_content(MetadataMode.EMBED)
    filters = MetadataFilters(
        filters=[
            MetadataFilter(key="number", value=30, operator=FilterOperator.GTE),
            MetadataFilter(key="kind", value=["moon", "tide"], operator=FilterOperator.IN),
        ]
    )
    found = pipeline.as_retriever(similarity_top_k=10, filters=filters).retrieve("copper wire")
    expected = index.search("copper wire", k=10, filter=lambda m: m["number"] >= 30 and m["kind"] in ("moon", "tide"))
    assert [node.node_id for node in found] == expected.ids != []
    hybrid = pipeline.as_retriever(similarity_top_k=3, vector_store_query_mode="hybrid").retrieve("copper wire")
    assert [node.node_id for node in hybrid] == index.search("copper wire", k=3, hybrid=True).ids


def test_llama_index_refuses_what_it_cannot_do(index: GraceIndex) -> None:
    pytest.importorskip("llama_index.core")
    from llama_index.core.schema import TextNode
    from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
    from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

    store = index.as_llama_index()
    with pytest.raises(InputError, match="grace index add"):
        store.add([TextNode(text="a")])
    with pytest.raises(InputError, match="grace index delete"):
        store.delete("d1")
    with pytest.raises(InputError, match="mode='mmr'"):
        store.query(VectorStoreQuery(query_str="a", mode=VectorStoreQueryMode.MMR))
    with pytest.raises(InputError, match="neither"):
        store.query(VectorStoreQuery())
    with pytest.raises(InputError, match="node_ids"):
        store.query(VectorStoreQuery(query_str="a", node_ids=["d1"]))
    unknown = MetadataFilters(
        filters=[
            MetadataFilters(filters=[MetadataFilter(key="knd", value="moon")]),
            MetadataFilter(key="number", value=1),
        ]
    )
    with pytest.raises(InputError, match=r"no document has metadata 'knd'\. Did you mean kind\?"):
        store.query(VectorStoreQuery(query_str="moon", filters=unknown))
    older = MetadataFilters(filters=[MetadataFilter(key="kind", value=2020, operator=FilterOperator.GT)])
    with pytest.raises(InputError, match=r"kind > 2020 compares with number, and 'kind' is text in all documents"):
        store.query(VectorStoreQuery(query_str="a", filters=older))
    vector = index.embed_queries(["glass"])[0].tolist()
    by_vector = store.query(VectorStoreQuery(query_embedding=vector, similarity_top_k=2))
    assert by_vector.ids == index.search("glass", k=2).ids
    assert store.client is index


def test_langchain_refuses_arguments_that_mean_nothing(index: GraceIndex) -> None:
    pytest.importorskip("langchain_core")
    store = index.as_langchain()
    with pytest.raises(InputError, match=r"not searched with filtr=.* Did you mean filter\?"):
        store.similarity_search("moon", filtr={"kind": "moon"})
    with pytest.raises(InputError, match="not searched with hybrid=True"):
        store.similarity_search_by_vector([0.0] * index.dimension, hybrid=True)
    with pytest.raises(InputError, match="not searched with nothing=1"):
        store.max_marginal_relevance_search("moon", nothing=1)
    assert store.similarity_search_with_relevance_scores("moon", k=2, score_threshold=-1.0)
