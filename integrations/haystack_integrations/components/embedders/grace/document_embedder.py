"""GraceDocumentEmbedder: embeds the documents of a Haystack pipeline."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict

from grace_retrieval.bundled import DEFAULT_MODEL
from grace_retrieval.errors import InputError
from grace_retrieval.settings import EmbedderSettings

__all__ = ["GraceDocumentEmbedder"]


@component
class GraceDocumentEmbedder:
    """Embeds documents through written rationales.

    Args:
        model: A bundled model ("grace-small", "grace-nano"), a folder, a hub name, or a live GraceEmbedder.
        options: See `EmbedderOptions`: system_prompt, cache, device, truncate_dim, identity_file, ...
        meta_fields_to_embed: Names of meta fields whose values stand before the content.
        embedding_separator: Stands between them.
    """

    def __init__(
        self,
        model: Any = DEFAULT_MODEL,
        options: dict[str, Any] | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
    ) -> None:
        self.settings = EmbedderSettings(model=model, **(options or {}))
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator

    def warm_up(self) -> None:
        """Load the model."""
        self.settings.load()

    def to_dict(self) -> dict[str, Any]:
        """The configuration, without the model's weights."""
        own = {"meta_fields_to_embed": self.meta_fields_to_embed, "embedding_separator": self.embedding_separator}
        return default_to_dict(self, **self.settings.split(), **own)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> GraceDocumentEmbedder:
        """Read back what `to_dict` gave."""
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Give copies of the documents with their embeddings; one without content embeds as its meta fields alone."""
        vectors = self.settings.embed_documents(self._texts(documents))
        return {"documents": [replace(d, embedding=v) for d, v in zip(documents, vectors, strict=True)]}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """As `run`, off the event loop."""
        vectors = await self.settings.aembed_documents(self._texts(documents))
        return {"documents": [replace(d, embedding=v) for d, v in zip(documents, vectors, strict=True)]}

    def _texts(self, documents: Any) -> list[str]:
        if not isinstance(documents, list) or not all(isinstance(document, Document) for document in documents):
            raise InputError("GraceDocumentEmbedder takes a list of Documents; for a query use GraceTextEmbedder.")
        return [self._text(document) for document in documents]

    def _text(self, document: Document) -> str:
        fields = [str(document.meta[k]) for k in self.meta_fields_to_embed if document.meta.get(k) is not None]
        return self.embedding_separator.join([*fields, "" if document.content is None else document.content])
