"""LlamaIndex: settings, pipelines with cache and docstore, indexes with a FAISS store, and rationales."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_index.core", reason="the extra 'llama-index' is not installed")

from llama_index.core import Settings, StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.ingestion import DocstoreStrategy, IngestionCache, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, MetadataMode, NodeWithScore, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore

from grace_retrieval import GraceEmbedder, ModelMismatchError
from llama_index.embeddings.grace import GraceEmbedding, RationalePostprocessor

TINY = str(Path(__file__).parents[1] / "fixtures" / "tiny-policy")
OPTIONS: dict[str, Any] = {"model_name": TINY, "max_new_tokens": 8, "device": "cpu"}
TEXTS = ["The moon pulls on\nthe sea.", "Bread rises by yeast.", "Iron rusts in air."]


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """LlamaIndex's global settings are as before, for other tests."""
    before = Settings._embed_model
    yield
    Settings._embed_model = before


def nodes() -> list[TextNode]:
    return [TextNode(text=text, id_=f"n{n}", metadata={"place": n}) for n, text in enumerate(TEXTS)]


def written(embed_model: GraceEmbedding) -> int:
    return embed_model.embedder.writer.engine.statistics()["texts"]


class TestSettings:
    def test_a_dict_holds_everything_and_comes_back(self, tmp_path: Path) -> None:
        embed_model = GraceEmbedding(
            **OPTIONS,
            system_prompt="Say what it is.",
            embed_batch_size=7,
            num_workers=3,
            truncate_dim=16,
            cache=str(tmp_path / "x.sqlite"),
            temperature=0.5,
            seed=3,
        )
        values = json.loads(json.dumps(embed_model.to_dict()))
        assert values["class_name"] == "GraceEmbedding"
        again = GraceEmbedding.from_dict(values)
        assert again.to_dict() == embed_model.to_dict() == values
        assert (again.embed_batch_size, again.num_workers, again.seed) == (7, 3, 3)
        assert again.embedder is embed_model.embedder
        assert GraceEmbedding.from_json(embed_model.to_json()).to_dict() == values
        assert pickle.loads(pickle.dumps(embed_model.to_dict())) == values

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
    def test_copies_hold_the_same(self, copied: Callable[[GraceEmbedding], GraceEmbedding]) -> None:
        embed_model = GraceEmbedding(**OPTIONS, embed_batch_size=7)
        vector = embed_model.get_query_embedding("x")
        again = copied(embed_model)
        assert again.to_dict() == embed_model.to_dict() and again.embed_batch_size == 7
        assert again.get_query_embedding("x") == vector

    def test_it_is_the_global_embedding_model(self) -> None:
        Settings.embed_model = GraceEmbedding(**OPTIONS)
        index = VectorStoreIndex(nodes())
        (found,) = index.as_retriever(similarity_top_k=1).retrieve("Why are there tides?")
        embedder = Settings.embed_model.embedder
        shown = [node.get_content(MetadataMode.EMBED) for node in nodes()]
        scores = embedder.encode_document(shown) @ embedder.encode_query("Why are there tides?")
        assert found.node.node_id == f"n{int(np.argmax(scores))}"
        assert found.score == pytest.approx(float(scores.max()), abs=1e-5)


class TestBatches:
    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Sizes of what was handed to `encode`."""
        sizes: list[int] = []
        original = GraceEmbedder.encode

        def counted(self: GraceEmbedder, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            sizes.append(len(inputs))
            return original(self, inputs, *args, **kwargs)

        monkeypatch.setattr(GraceEmbedder, "encode", counted)
        return sizes

    def test_texts_go_together_and_not_in_tens(self, calls: list[int]) -> None:
        GraceEmbedding(**OPTIONS).get_text_embedding_batch([f"text {n}" for n in range(60)])
        assert calls == [60]

    async def test_async_texts_go_together(self, calls: list[int]) -> None:
        embed_model = GraceEmbedding(**OPTIONS, embed_batch_size=10)
        embed_model.get_text_embedding("loads the model")
        calls.clear()
        vectors = await embed_model.aget_text_embedding_batch([f"text {n}" for n in range(60)])
        assert len(vectors) == 60 and calls == [60], "six batches of ten wait at the same time"
        single = await asyncio.gather(*(embed_model.aget_text_embedding(f"text {n}") for n in range(60)))
        # LlamaIndex lets the loop turn before it asks, so they come in a few groups; how many depends on the machine.
        assert single == vectors and sum(calls) == 120 and len(calls) <= 1 + 60 // 6


class TestPipeline:
    def run(self, cache: IngestionCache, docstore: Any = None, texts: list[str] = TEXTS, **options: Any) -> Any:
        """Run a pipeline; gives the embedding model and the nodes."""
        embed_model = GraceEmbedding(**{**OPTIONS, "cache": None, **options})
        pipeline = IngestionPipeline(
            transformations=[SentenceSplitter(chunk_size=64, chunk_overlap=0), embed_model],
            cache=cache,
            docstore=docstore,
            vector_store=None if docstore is None else SimpleVectorStore(),
            docstore_strategy=DocstoreStrategy.UPSERTS,
            disable_cache=False,
        )
        return embed_model, pipeline.run(documents=[Document(text=text, id_=text[:4]) for text in texts])

    def test_the_second_run_embeds_nothing(self) -> None:
        cache = IngestionCache()
        first, found = self.run(cache)
        assert written(first) == 3 and all(len(node.embedding) == 32 for node in found)
        again, same = self.run(cache)
        assert again.embedder is first.embedder and written(again) == 3
        assert [node.embedding for node in same] == [node.embedding for node in found]

    @pytest.mark.parametrize(
        ("change", "times"),
        [
            ({"embed_batch_size": 3}, 1),
            ({"num_workers": 2}, 1),
            ({"max_batch_tokens": 4096}, 1),
            ({"on_truncation": "error"}, 1),
            ({"prompts": {"query": "Other."}}, 1),
            ({"system_prompt": "Other."}, 2),
            ({"max_new_tokens": 4}, 2),
            ({"truncate_dim": 16}, 2),
            ({"rationale": False}, 2),
        ],
    )
    def test_what_changes_a_document_vector_embeds_again_and_nothing_else_does(
        self, change: dict[str, Any], times: int
    ) -> None:
        cache = IngestionCache()
        first, _ = self.run(cache)
        second, found = self.run(cache, **change)
        total = written(first) + (written(second) if second.embedder is not first.embedder else 0)
        assert total == 3 * times
        width = change.get("truncate_dim", 32)
        assert all(len(node.embedding) == width for node in found)

    def test_new_weights_in_the_same_folder_embed_again(
        self, make_embedder: Callable[..., GraceEmbedder], tmp_path: Path
    ) -> None:
        import torch

        trained = make_embedder()
        trained.save_pretrained(str(tmp_path / "model"))
        cache = IngestionCache()
        _, before = self.run(cache, model_name=str(tmp_path / "model"))
        with torch.no_grad():
            trained.writer.model.get_input_embeddings().weight.add_(0.05)
        trained.save_pretrained(str(tmp_path / "model"))
        second, after = self.run(cache, model_name=str(tmp_path / "model"))
        assert written(second) == 3
        assert np.abs(np.array(after[0].embedding) - before[0].embedding).max() > 1e-3

    def test_a_docstore_lets_only_new_and_changed_documents_through(self) -> None:
        cache, docstore = IngestionCache(), SimpleDocumentStore()
        first, _ = self.run(cache, docstore)
        _, found = self.run(cache, docstore)
        assert found == [] and written(first) == 3
        changed, found = self.run(cache, docstore, texts=[*TEXTS[:2], "Iron rusts in damp air.", "New."])
        assert written(changed) == 5 and len(found) == 2

    async def test_it_runs_asynchronously(self) -> None:
        embed_model = GraceEmbedding(**OPTIONS)
        found = await IngestionPipeline(transformations=[embed_model]).arun(nodes=nodes())
        assert [node.embedding for node in found] == embed_model.get_text_embedding_batch(
            [node.get_content(MetadataMode.EMBED) for node in nodes()]
        )


class TestFaissIndex:
    @staticmethod
    def store(dimension: int = 32) -> Any:
        faiss = pytest.importorskip("faiss", reason="the extra 'cpu' is not installed")
        stores = pytest.importorskip("llama_index.vector_stores.faiss", reason="the FAISS store is not installed")
        return stores.FaissVectorStore(faiss_index=faiss.IndexFlatIP(dimension))

    def build(self, folder: Path, **options: Any) -> VectorStoreIndex:
        storage = StorageContext.from_defaults(vector_store=self.store())
        index = VectorStoreIndex(nodes(), storage_context=storage, embed_model=GraceEmbedding(**OPTIONS, **options))
        storage.persist(str(folder))
        return index

    def open(self, folder: Path, **options: Any) -> VectorStoreIndex:
        stores = pytest.importorskip("llama_index.vector_stores.faiss", reason="the FAISS store is not installed")
        storage = StorageContext.from_defaults(
            vector_store=stores.FaissVectorStore.from_persist_dir(str(folder)), persist_dir=str(folder)
        )
        return load_index_from_storage(storage, embed_model=GraceEmbedding(**OPTIONS, **options))

    def test_it_finds_what_the_vectors_say(self, tmp_path: Path) -> None:
        guard = str(tmp_path / "identity.json")
        index = self.build(tmp_path, identity_file=guard)
        again = self.open(tmp_path, identity_file=guard)
        embedder = GraceEmbedding(**OPTIONS).embedder
        query = "Why are there tides?"
        scores = embedder.encode_document([node.get_content(MetadataMode.EMBED) for node in nodes()]) @ (
            embedder.encode_query(query)
        )
        for opened in (index, again):
            found = opened.as_retriever(similarity_top_k=3).retrieve(query)
            assert [item.node.node_id for item in found] == [f"n{n}" for n in np.argsort(-scores)]
            assert [item.score for item in found] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)

    @pytest.mark.parametrize(
        ("other", "named"),
        [({"system_prompt": "Other."}, "prompt"), ({"truncate_dim": 16}, "dimension: 16 here, 32 there")],
    )
    def test_an_index_made_with_something_else_is_refused(
        self, tmp_path: Path, other: dict[str, Any], named: str
    ) -> None:
        guard = str(tmp_path / "identity.json")
        self.build(tmp_path, identity_file=guard)
        wrong = self.open(tmp_path, identity_file=guard, **other)
        with pytest.raises(ModelMismatchError, match=f"holds vectors of the model .*tiny-policy.*{named}"):
            wrong.as_retriever().retrieve("tides")
        with pytest.raises(ModelMismatchError, match=named):
            wrong.insert_nodes(nodes()[:1])


class TestRationales:
    def test_they_are_attached_from_the_cache_outside_of_what_is_embedded(self) -> None:
        embed_model = GraceEmbedding(**OPTIONS)
        index = VectorStoreIndex(nodes(), embed_model=embed_model)
        before = written(embed_model)
        found = index.as_retriever(similarity_top_k=3).retrieve("Why are there tides?")
        assert all("rationale" not in item.node.metadata for item in found)
        explained = RationalePostprocessor(embed_model=embed_model).postprocess_nodes(found)
        assert written(embed_model) == before + 1, "the query, and nothing else"
        for item, plain in zip(explained, found, strict=True):
            shown = plain.node.get_content(MetadataMode.EMBED)
            (expected,) = embed_model.embedder.rationales(shown, "document")
            assert item.node.metadata["rationale"] == expected.text != ""
            assert item.score == plain.score and item.node.metadata["place"] == plain.node.metadata["place"]
            assert item.node.get_content(MetadataMode.EMBED) == shown
            assert item.node.get_content(MetadataMode.LLM) == plain.node.get_content(MetadataMode.LLM)
            assert "rationale" not in plain.node.metadata, "what the docstore holds stays as it was"
        found[0].node.metadata["rationale"] = "own"
        (kept, *_) = RationalePostprocessor(embed_model=embed_model).postprocess_nodes(found)
        assert kept.node.metadata["rationale"] == "own" and "grace_rationale" in kept.node.metadata
        assert "own" in kept.node.get_content(MetadataMode.LLM), "a column of the corpus is shown"

    def test_it_is_a_step_of_a_query_engine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from llama_index.core.llms import MockLLM  # LlamaIndex's own stand-in: it is never asked
        from llama_index.core.query_engine import RetrieverQueryEngine
        from llama_index.core.response_synthesizers import ResponseMode, get_response_synthesizer

        monkeypatch.setattr(Settings, "_llm", MockLLM())
        embed_model = GraceEmbedding(**OPTIONS)
        engine = RetrieverQueryEngine(
            retriever=VectorStoreIndex(nodes(), embed_model=embed_model).as_retriever(similarity_top_k=2),
            response_synthesizer=get_response_synthesizer(response_mode=ResponseMode.NO_TEXT),
            node_postprocessors=[RationalePostprocessor(embed_model=embed_model)],
        )
        response = engine.query("Why are there tides?")
        assert [bool(item.node.metadata["rationale"]) for item in response.source_nodes] == [True, True]

    def test_a_rationale_that_the_cache_lost_is_none(self) -> None:
        embed_model = GraceEmbedding(**OPTIONS, cache=None)
        embed_model.get_text_embedding("x")
        (found,) = RationalePostprocessor(embed_model=embed_model).postprocess_nodes(
            [NodeWithScore(node=TextNode(text="x"), score=1.0)]
        )
        assert found.node.metadata["rationale"] is None and written(embed_model) == 1
