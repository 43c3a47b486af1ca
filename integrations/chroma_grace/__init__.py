"""GRACE embeddings for Chroma: `GraceEmbeddingFunction`."""

from __future__ import annotations

from grace_retrieval.extras import require_extra

require_extra("chromadb", "chromadb", "1.0", extra="chroma", purpose="chroma_grace")

from chroma_grace.embedding_function import GraceEmbeddingFunction

__all__ = ["GraceEmbeddingFunction"]
