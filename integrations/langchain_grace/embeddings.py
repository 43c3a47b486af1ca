"""GraceEmbeddings: the embedding model of LangChain's vector stores and retrievers."""

from __future__ import annotations

from langchain_core.embeddings import Embeddings

from grace_retrieval.settings import EmbedderSettings
from langchain_grace.byte_store import GraceByteStore

__all__ = ["GraceEmbeddings"]


class GraceEmbeddings(EmbedderSettings, Embeddings):
    """Embeds documents and queries through written rationales, each role with its own prompt.

    Holds configuration only: the model is loaded when first used, once in a process, and copies and pickles carry no
    weights. Asynchronous calls run on a thread of their own and are batched together.

    Args:
        model: A bundled model ("grace-small", "grace-nano"), a folder, a hub name, or a live GraceEmbedder;
            `model_name` means the same.
        **options: See `EmbedderOptions`: system_prompt, cache, device, truncate_dim, show_progress, identity_file, ...
            Arguments of HuggingFaceEmbeddings (model_kwargs, encode_kwargs, query_encode_kwargs, multi_process, ...)
            are taken where they mean the same, and refused with what to write instead where they do not.

    Raises:
        ValidationError: If an option is unknown or of the wrong type.

    Example:
        >>> embeddings = GraceEmbeddings(model="grace-nano", cache=None)
        >>> len(embeddings.embed_query("Why do tides follow the moon?"))
        256
    """

    def as_byte_store(self) -> GraceByteStore:
        """The embedder's cache as a key-value store, for what LangChain keeps beside embeddings.

        Keys are apart for each model, prompt and dimension, so vectors cached under a text by one model are never found
        by another.

        Raises:
            InputError: If this configuration has no cache.
        """
        return GraceByteStore(self.embedder)
