"""GRACE embeddings for LlamaIndex: `GraceEmbedding`, and `RationalePostprocessor` that shows rationales."""

from __future__ import annotations

from grace_retrieval.extras import require_extra

require_extra(
    "llama_index.core", "llama-index-core", "0.14", extra="llama-index", purpose="llama_index.embeddings.grace"
)

from llama_index.embeddings.grace.base import GraceEmbedding
from llama_index.embeddings.grace.rationales import RationalePostprocessor

__all__ = ["GraceEmbedding", "RationalePostprocessor"]
