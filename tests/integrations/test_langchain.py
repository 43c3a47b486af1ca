"""LangChain: its own standard tests, vector stores, retrievers and the byte store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("langchain_core", reason="the extra 'langchain' is not installed")

from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import BaseStoreAsyncTests, BaseStoreSyncTests, EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from grace_retrieval import InputError, ModelMismatchError, open_cache
from langchain_grace import GraceByteStore, GraceEmbeddings, GraceRetriever

TINY = str(Path(__file__).parents[1] / "fixtures" / "tiny-policy")
OPTIONS: dict[str, Any] = {"model": TINY, "max_new_tokens": 8, "device": "cpu"}
PASSAGES = [
    Document(page_content="The moon pulls on\nthe sea.", metadata={"source": "a"}),
    Document(page_content="Bread rises by yeast."),
    Document(page_content=""),
]


class TestUnit(EmbeddingsUnitTests):
    """LangChain's standard unit tests."""

    @property
    def embeddings_class(self) -> type[GraceEmbeddings]:
        return GraceEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return OPTIONS


class TestIntegration(EmbeddingsIntegrationTests):
    """LangChain's standard integration tests."""

    @property
    def embeddings_class(self) -> type[GraceEmbeddings]:
        return GraceEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return OPTIONS


class _ByteStores:
    @pytest.fixture(params=["file", "memory"])
    def kv_store(self, request: pytest.FixtureRequest) -> GraceByteStore:
        cache = "default" if request.param == "file" else "memory"
        return GraceEmbeddings(**OPTIONS, cache=cache).as_byte_store()

    @pytest.fixture
    def three_values(self) -> tuple[bytes, bytes, bytes]:
        return b"foo", b"\x00\xff \n", b""


class TestByteStore(_ByteStores, BaseStoreSyncTests[bytes]):
    """LangChain's standard tests of a key-value store."""


class TestByteStoreAsync(_ByteStores, BaseStoreAsyncTests[bytes]):
    """The same, asynchronously."""


class TestByteStoreBeyondTheStandard:
    def test_keys_of_one_model_or_prompt_are_not_those_of_another(self) -> None:
        one = GraceEmbeddings(**OPTIONS).as_byte_store()
        one.mset([("text", b"a vector of the first")])
        for other in ({"system_prompt": "Say what it is."}, {"truncate_dim": 16}, {"prompts": {"query": "Ask."}}):
            store = GraceEmbeddings(**OPTIONS, **other).as_byte_store()
            assert store.mget(["text"]) == [None] and list(store.yield_keys()) == []
            store.mset([("text", b"another one")])
        assert GraceEmbeddings(**OPTIONS).as_byte_store().mget(["text"]) == [b"a vector of the first"]

    def test_it_leaves_rationales_alone(self) -> None:
        embeddings = GraceEmbeddings(**OPTIONS)
        vectors = embeddings.embed_documents(["one", "two"])
        store = embeddings.as_byte_store()
        store.mset([(str(n), b"x" * n) for n in range(50)])
        store.mset([(str(n), b"y") for n in range(50)])
        store.mdelete([str(n) for n in range(10)])
        assert sorted(store.yield_keys(), key=int) == [str(n) for n in range(10, 50)]
        cache = embeddings.embedder.cache
        assert cache is not None and len(cache) == 42 and cache.verify().ok
        assert cache.stats().rows == 42
        assert embeddings.embed_documents(["one", "two"]) == vectors
        assert embeddings.embedder.writer.engine.statistics()["texts"] == 2

    def test_without_a_cache_it_says_what_to_do(self) -> None:
        with pytest.raises(InputError, match="give cache='default', a path or 'memory'"):
            GraceEmbeddings(**OPTIONS, cache=None).as_byte_store()


class TestRetriever:
    @pytest.fixture
    def store(self) -> InMemoryVectorStore:
        store = InMemoryVectorStore(GraceEmbeddings(**OPTIONS))
        store.add_documents(PASSAGES[:2])
        return store

    @staticmethod
    def calls(store: InMemoryVectorStore) -> int:
        return store.embeddings.embedder.writer.engine.statistics()["texts"]

    def test_the_ranking_is_that_of_the_vectors(self, store: InMemoryVectorStore) -> None:
        query = "Why are there tides?"
        found = store.similarity_search_with_score(query, k=2)
        embedder = store.embeddings.embedder
        expected = embedder.encode_document([p.page_content for p in PASSAGES[:2]]) @ embedder.encode_query(query)
        assert [score for _, score in found] == pytest.approx(sorted(expected, reverse=True), abs=1e-5)
        assert found[0][0].page_content == PASSAGES[int(np.argmax(expected))].page_content

    def test_rationales_are_off_by_default(self, store: InMemoryVectorStore) -> None:
        found = GraceRetriever(vectorstore=store).invoke("tides")
        assert len(found) == 2 and all("rationale" not in document.metadata for document in found)

    @pytest.mark.parametrize("way", ["invoke", "ainvoke"])
    async def test_rationales_come_from_the_cache(self, store: InMemoryVectorStore, way: str) -> None:
        retriever = GraceRetriever(vectorstore=store, rationales=True, search_kwargs={"k": 2})
        before = self.calls(store)
        found = retriever.invoke("tides") if way == "invoke" else await retriever.ainvoke("tides")
        assert self.calls(store) - before == 1, "the query, and nothing else"
        embedder = store.embeddings.embedder
        for document in found:
            (expected,) = embedder.rationales(document.page_content, "document")
            assert document.metadata["rationale"] == expected.text != ""
        assert {document.metadata.get("source") for document in found} == {"a", None}
        assert self.calls(store) - before == 1
        plain = GraceRetriever(vectorstore=store).invoke("tides")
        assert all("rationale" not in document.metadata for document in plain), "what is stored stays as it was"

    def test_a_rationale_that_is_the_documents_own_is_kept(self, store: InMemoryVectorStore) -> None:
        store.add_documents([Document(page_content="A note on tides.", metadata={"rationale": "own"})])
        found = GraceRetriever(vectorstore=store, rationales=True, search_kwargs={"k": 9}).invoke("tides")
        (noted,) = (document for document in found if document.page_content == "A note on tides.")
        assert noted.metadata["rationale"] == "own"
        assert noted.metadata["grace_rationale"] not in ("own", "")

    def test_a_rationale_that_the_cache_lost_is_none(self, store: InMemoryVectorStore) -> None:
        cache = store.embeddings.embedder.cache
        assert cache is not None
        cache.clear()
        found = GraceRetriever(vectorstore=store, rationales=True).invoke("tides")
        assert [document.metadata["rationale"] for document in found] == [None, None]
        assert self.calls(store) == 3

    def test_a_store_with_other_embeddings_is_refused(self) -> None:
        from langchain_core.embeddings import DeterministicFakeEmbedding

        store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
        store.add_documents(PASSAGES[:1])
        with pytest.raises(InputError, match="needs GraceEmbeddings, and InMemoryVectorStore has Deterministic"):
            GraceRetriever(vectorstore=store, rationales=True).invoke("tides")

    def test_it_is_part_of_a_chain(self, store: InMemoryVectorStore) -> None:
        from langchain_core.runnables import RunnableLambda

        chain = GraceRetriever(vectorstore=store, rationales=True) | RunnableLambda(
            lambda found: [document.metadata["rationale"] for document in found]
        )
        assert len(chain.invoke("tides")) == 2


class TestStoredVectors:
    @pytest.mark.parametrize("other", [{"system_prompt": "Say what it is."}, {"truncate_dim": 16}])
    def test_a_store_made_with_something_else_is_refused(self, tmp_path: Path, other: dict[str, Any]) -> None:
        guard = str(tmp_path / "store" / "identity.json")
        store = InMemoryVectorStore(GraceEmbeddings(**OPTIONS, identity_file=guard))
        store.add_documents(PASSAGES[:2])
        store.dump(str(tmp_path / "store" / "vectors.json"))
        again = InMemoryVectorStore.load(
            str(tmp_path / "store" / "vectors.json"), GraceEmbeddings(**OPTIONS, identity_file=guard)
        )
        assert len(again.similarity_search("tides", k=2)) == 2
        wrong = InMemoryVectorStore.load(
            str(tmp_path / "store" / "vectors.json"), GraceEmbeddings(**OPTIONS, **other, identity_file=guard)
        )
        for use in (lambda: wrong.similarity_search("tides"), lambda: wrong.add_documents(PASSAGES[:1])):
            with pytest.raises(ModelMismatchError, match=r"identity\.json holds vectors of the model .*tiny-policy.*'"):
                use()

    async def test_async_calls_are_refused_too(self, tmp_path: Path) -> None:
        guard = str(tmp_path / "identity.json")
        await GraceEmbeddings(**OPTIONS, identity_file=guard).aembed_documents(["x"])
        wrong = GraceEmbeddings(**OPTIONS, system_prompt="Other.", identity_file=guard)
        with pytest.raises(ModelMismatchError, match="prompt"):
            await wrong.aembed_query("x")
        with pytest.raises(ModelMismatchError, match="prompt"):
            await wrong.aembed_documents(["x"])

    def test_other_weights_are_refused_with_both_names(self, tmp_path: Path, make_embedder: Callable[..., Any]) -> None:
        import torch

        trained = make_embedder()
        with torch.no_grad():
            trained.writer.model.get_input_embeddings().weight.add_(0.05)
        trained.save_pretrained(str(tmp_path / "trained"))
        guard = str(tmp_path / "identity.json")
        GraceEmbeddings(**OPTIONS, identity_file=guard).embed_documents(["x"])
        with pytest.raises(ModelMismatchError, match=r"tiny-policy.*trained.*weights"):
            GraceEmbeddings(**{**OPTIONS, "model": str(tmp_path / "trained")}, identity_file=guard).embed_query("x")

    def test_a_store_that_does_not_say_what_it_holds_is_no_guess(self, tmp_path: Path) -> None:
        embeddings = GraceEmbeddings(**OPTIONS, identity_file=str(tmp_path / "identity.json"))
        with pytest.raises(InputError, match=r"does not exist.*vector_identity\(\)\.write"):
            embeddings.embed_query("x")
        (tmp_path / "identity.json").write_text("[]")
        with pytest.raises(InputError, match="it holds list"):
            embeddings.embed_query("x")
        (tmp_path / "identity.json").write_text("{")
        with pytest.raises(InputError, match="is no file of a vector identity"):
            embeddings.embed_documents(["x"])
        (tmp_path / "identity.json").unlink()
        embeddings.vector_identity().write(tmp_path / "identity.json")
        assert len(embeddings.embed_query("x")) == 32


def test_rows_can_be_deleted_one_by_one(tmp_path: Path, make_embedder: Callable[..., Any]) -> None:
    for cache in (open_cache(tmp_path / "x.sqlite"), open_cache("memory")):
        embedder = make_embedder(cache=cache)
        embedder.encode(["a", "b", "c"])
        keys = [key for key, *_ in cache.rows()]
        assert cache.delete_many([*keys[:2], keys[0], b"0" * 16]) == 2
        assert len(cache) == 1 and cache.stats().rows == 1 and cache.verify().ok
        with pytest.raises(InputError, match="a row key"):
            cache.delete_many([b"short"])
