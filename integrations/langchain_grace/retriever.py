"""GraceRetriever: a vector store's retriever that can show what the model wrote about each document."""

from __future__ import annotations

import asyncio
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStoreRetriever

from grace_retrieval.corpus.document import key_beside
from grace_retrieval.errors import InputError
from langchain_grace.embeddings import GraceEmbeddings

__all__ = ["GraceRetriever"]


class GraceRetriever(VectorStoreRetriever):
    """Takes the place of `vectorstore.as_retriever()`.

    Args:
        vectorstore: Any vector store whose embedding function is a GraceEmbeddings.
        rationales: Whether documents get `metadata["rationale"]`: what the model wrote when it embedded them, from the
            cache, without another model call; None if the cache no longer has it. Where a document has a "rationale" of
            its own, ours is "grace_rationale".
        embeddings: Needed only if the vector store does not tell its embedding function.
        **kwargs: As in VectorStoreRetriever: search_type, search_kwargs, tags, ...
    """

    rationales: bool = False
    embeddings: GraceEmbeddings | None = None

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        found = super()._get_relevant_documents(query, run_manager=run_manager, **kwargs)
        return self._explained(found)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        found = await super()._aget_relevant_documents(query, run_manager=run_manager, **kwargs)
        return await asyncio.to_thread(self._explained, found)

    def _explained(self, documents: list[Document]) -> list[Document]:
        if not self.rationales:
            return documents
        embeddings = self.embeddings or self.vectorstore.embeddings
        if not isinstance(embeddings, GraceEmbeddings):
            raise InputError(
                f"rationales=True needs GraceEmbeddings, and {type(self.vectorstore).__name__} has "
                f"{type(embeddings).__name__}. Give embeddings=GraceEmbeddings(...), the ones the documents were "
                "stored with."
            )
        written = embeddings.rationale_texts([document.page_content for document in documents])
        return [
            document.model_copy(update={"metadata": {**metadata, key_beside(metadata, "rationale"): rationale}})
            for document, rationale in zip(documents, written, strict=True)
            for metadata in [document.metadata]
        ]
