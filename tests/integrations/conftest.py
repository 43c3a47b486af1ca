"""One interface over all faces of the embedder, so that a promise is written down once and asked of each."""

from __future__ import annotations

import os

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when haystack is imported
os.environ["ANONYMIZED_TELEMETRY"] = "False"

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from grace_retrieval import GraceEmbedder

Vectors = list[list[float]]


@dataclass(kw_only=True)
class Face:
    """How a framework embeds.

    Attributes:
        native: The framework's own object.
        documents: Embeds documents.
        query: Embeds a query.
        adocuments: The same, asynchronously; None if the framework has no such call.
        aquery: The same, asynchronously.
        load: The embedder behind it.
        document_call: Name and further arguments of the method that embeds documents, for other processes.
    """

    native: Any
    documents: Callable[[list[str]], Vectors]
    query: Callable[[str], list[float]]
    adocuments: Callable[[list[str]], Awaitable[Vectors]] | None = None
    aquery: Callable[[str], Awaitable[list[float]]] | None = None
    load: Callable[[], GraceEmbedder]
    document_call: str

    @property
    def embedder(self) -> GraceEmbedder:
        return self.load()

    @property
    def calls(self) -> int:
        """Texts that the model has seen."""
        return self.embedder.writer.engine.statistics()["texts"]


def _by_langchain_names(native: Any, load: Callable[[], GraceEmbedder]) -> Face:
    """The core's embedder has LangChain's method names too."""
    return Face(
        native=native,
        documents=native.embed_documents,
        query=native.embed_query,
        adocuments=native.aembed_documents,
        aquery=native.aembed_query,
        load=load,
        document_call="embed_documents",
    )


def _core(model: Any, options: dict[str, Any]) -> Face:
    from grace_retrieval import GraceEmbedder, shared_embedder

    native = model if isinstance(model, GraceEmbedder) else shared_embedder(model, **options)
    return _by_langchain_names(native, lambda: native)


def _langchain(model: Any, options: dict[str, Any]) -> Face:
    from langchain_grace import GraceEmbeddings

    native = GraceEmbeddings(model=model, **options)
    return _by_langchain_names(native, lambda: native.embedder)


def _llama_index(model: Any, options: dict[str, Any]) -> Face:
    from llama_index.embeddings.grace import GraceEmbedding

    native = GraceEmbedding(model_name=model, **options)
    return Face(
        native=native,
        documents=native.get_text_embedding_batch,
        query=native.get_query_embedding,
        adocuments=native.aget_text_embedding_batch,
        aquery=native.aget_query_embedding,
        load=lambda: native.embedder,
        document_call="get_text_embedding_batch",
    )


class HaystackPair:
    """The two components, as one object that can be copied."""

    def __init__(self, model: Any, options: dict[str, Any]) -> None:
        from haystack_integrations.components.embedders.grace import GraceDocumentEmbedder, GraceTextEmbedder

        self.document = GraceDocumentEmbedder(model, options)
        self.text = GraceTextEmbedder(model, options)


def _haystack(model: Any, options: dict[str, Any]) -> Face:
    from haystack import Document

    native = HaystackPair(model, options)

    async def adocuments(texts: list[str]) -> Vectors:
        found = await native.document.run_async([Document(content=text) for text in texts])
        return [document.embedding for document in found["documents"]]

    async def aquery(text: str) -> list[float]:
        return (await native.text.run_async(text))["embedding"]

    return Face(
        native=native,
        documents=lambda texts: [
            document.embedding
            for document in native.document.run([Document(content=text) for text in texts])["documents"]
        ],
        query=lambda text: native.text.run(text)["embedding"],
        adocuments=adocuments,
        aquery=aquery,
        load=lambda: native.document.settings.embedder,
        document_call="",
    )


def _chroma(model: Any, options: dict[str, Any]) -> Face:
    from chroma_grace import GraceEmbeddingFunction

    native = GraceEmbeddingFunction(model, options)
    return Face(
        native=native,
        documents=lambda texts: [vector.tolist() for vector in native(texts)],
        query=lambda text: native.embed_query([text])[0].tolist(),
        load=lambda: native.settings.embedder,
        document_call="__call__",
    )


_FACES: dict[str, tuple[str, Callable[[Any, dict[str, Any]], Face]]] = {
    "core": ("torch", _core),
    "langchain": ("langchain_core", _langchain),
    "llama_index": ("llama_index.core", _llama_index),
    "haystack": ("haystack", _haystack),
    "chroma": ("chromadb", _chroma),
}


@pytest.fixture(autouse=True)
def no_shared_embedders() -> Iterator[None]:
    """Every test loads its own."""
    from grace_retrieval import unload_embedders

    unload_embedders()
    yield
    unload_embedders()


@pytest.fixture
def make_face(tiny_policy: Path, tmp_path: Path) -> Callable[..., Face]:
    """`make_face("langchain", **options)`: tiny-policy behind a face, with short rationales and a cache of its own."""

    def make(name: str, model: Any = None, **options: Any) -> Face:
        module, build = _FACES[name]
        pytest.importorskip(module, reason=f"{module} is not installed")
        defaults = {"max_new_tokens": 8, "device": "cpu", "cache": str(tmp_path / "face.sqlite")}
        if model is not None and not isinstance(model, (str, Path)):
            defaults = {}  # a live embedder has its own
        model = str(tiny_policy) if model is None else str(model) if isinstance(model, Path) else model
        return build(model, {**defaults, **options})

    return make
