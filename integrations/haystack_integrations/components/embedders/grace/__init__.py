"""GRACE embedders for Haystack: `GraceTextEmbedder` for queries, `GraceDocumentEmbedder` for documents."""

from __future__ import annotations

from grace_retrieval.extras import require_extra

require_extra(
    "haystack", "haystack-ai", "2.11", extra="haystack", purpose="haystack_integrations.components.embedders.grace"
)

from haystack_integrations.components.embedders.grace.document_embedder import GraceDocumentEmbedder
from haystack_integrations.components.embedders.grace.text_embedder import GraceTextEmbedder

__all__ = ["GraceDocumentEmbedder", "GraceTextEmbedder"]
