"""What is taken from sentence-transformers, in one place: importing it is most of what importing an embedder takes."""

from __future__ import annotations

from grace_retrieval.importing import light_imports

with light_imports():
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import InputModule, Module
    from sentence_transformers.sentence_transformer.model_card import SentenceTransformerModelCardData
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
    from sentence_transformers.util import truncate_embeddings

__all__ = [
    "InputModule",
    "Module",
    "Normalize",
    "Pooling",
    "SentenceTransformer",
    "SentenceTransformerModelCardData",
    "truncate_embeddings",
]
