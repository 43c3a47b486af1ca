"""GraceEmbedding: the embedding model of LlamaIndex's indexes and pipelines."""

from __future__ import annotations

from typing import Any, ClassVar

from llama_index.core.base.embeddings.base import BaseEmbedding
from pydantic import Field

from grace_retrieval.bundled import DEFAULT_MODEL
from grace_retrieval.settings import EmbedderOptions, Model
from llama_index.embeddings.grace.configuration import Configuration

__all__ = ["GraceEmbedding"]


class GraceEmbedding(EmbedderOptions, BaseEmbedding):
    """Embeds nodes and queries through written rationales, each role with its own prompt.

    Holds configuration only: the model is loaded when first used, once in a process, and copies and pickles carry no
    weights. Asynchronous calls run on a thread of their own and are batched together.

    Args:
        model_name: A bundled model ("grace-small", "grace-nano"), a folder, a hub name, or a live GraceEmbedder;
            `model` means the same.
        embed_batch_size: Texts handed over at once; batches of the model are formed by tokens.
        **options: See `EmbedderOptions`: system_prompt, cache, device, truncate_dim, show_progress, identity_file, ...
            Arguments of HuggingFaceEmbedding (max_length, query_instruction, normalize, ...) are taken where they mean
            the same, and refused with what to write instead where they do not.

    Raises:
        ValidationError: If an option is unknown or of the wrong type.

    Example:
        >>> embed_model = GraceEmbedding(model_name="grace-nano", cache=None)
        >>> len(embed_model.get_query_embedding("Why do tides follow the moon?"))
        256
    """

    MODEL_FIELD: ClassVar[str] = "model_name"

    model_name: Model = Field(  # type: ignore[assignment]  # a live embedder is taken too
        default=DEFAULT_MODEL, description="Bundled model, folder, hub name, or a live GraceEmbedder."
    )
    embed_batch_size: int = Field(default=512, gt=0, le=2048, description="Texts handed over at once.")

    @classmethod
    def class_name(cls) -> str:
        """Name in serialised settings."""
        return "GraceEmbedding"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """The configuration, all of it; `from_dict` reads it back."""
        return Configuration(super().to_dict(**kwargs), self._document_identity)

    def _document_identity(self) -> str:
        identity = self.vector_identity()
        return f"{identity.document.digest().hex()} {identity.dimension}"

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self.embed_documents(texts)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await self.aembed_documents(texts)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self.aembed_documents([text]))[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self.embed_query(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await self.aembed_query(query)
