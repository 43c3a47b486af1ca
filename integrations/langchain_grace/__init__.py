"""GRACE embeddings for LangChain: `GraceEmbeddings`, and `GraceRetriever` that shows rationales."""

from __future__ import annotations

from grace_retrieval.extras import require_extra

require_extra("langchain_core", "langchain-core", "1.0", extra="langchain", purpose="langchain_grace")

from langchain_grace.byte_store import GraceByteStore
from langchain_grace.embeddings import GraceEmbeddings
from langchain_grace.retriever import GraceRetriever
from langchain_grace.vector_store import GraceVectorStore

__all__ = ["GraceByteStore", "GraceEmbeddings", "GraceRetriever", "GraceVectorStore"]
