"""What turns the documents of a shard into vectors: an embedder, or the vectors they brought."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from grace_retrieval.document import Document
from grace_retrieval.indexing.shards import Written

if TYPE_CHECKING:
    from grace_retrieval.cache.recording import RecordingCache
    from grace_retrieval.embedder import GraceEmbedder
    from grace_retrieval.vector_identity import VectorIdentity

__all__ = ["EmbedderEncoder", "Encoder", "GivenVectors", "recording"]


class Encoder(Protocol):
    """Makes the rows of a shard.

    Attributes:
        rationale: Whether rationales are written.
        identity: What the vectors are made with; None if that is not known.
        settings: How the embedder is loaded; None if there is none.
    """

    rationale: bool
    identity: VectorIdentity | None
    settings: dict[str, Any] | None

    def encode(self, documents: Sequence[Document]) -> tuple[list[Written], npt.NDArray[np.float32]]:
        """What is written about documents, and their vectors. Shape: (documents, dim), float32."""


class EmbedderEncoder:
    """Embeds documents, and keeps the rationales.

    Args:
        embedder: The model.
        cache: Its cache.
        rationale: Whether to write rationales; None is the model's setting.
    """

    def __init__(self, embedder: GraceEmbedder, cache: RecordingCache, *, rationale: bool | None = None) -> None:
        from grace_retrieval.indexing.loading import embedder_settings

        self.embedder = embedder
        self.cache = cache
        self.rationale = embedder.writer.rationale if rationale is None else rationale
        self.identity: VectorIdentity | None = embedder.vector_identity(self.rationale)
        self.settings: dict[str, Any] | None = embedder_settings(embedder)

    def encode(self, documents: Sequence[Document]) -> tuple[list[Written], npt.NDArray[np.float32]]:
        """What is written about documents, and their vectors. Shape: (documents, dim), float32."""
        from grace_retrieval.encoding import encode_texts

        texts = [document.embedded_text for document in documents]
        found = encode_texts(self.embedder, self.cache, texts, role="document", rationale=self.rationale)
        written = [
            Written(
                rationale=row.text if self.rationale else None,
                rationale_ids=row.token_ids if self.rationale else None,
                truncated=row.truncated,
                text_truncated=row.text_truncated,
            )
            for row in found.rationales
        ]
        return written, found.vectors


@dataclass(frozen=True, kw_only=True)
class GivenVectors:
    """Takes the vectors that the documents brought.

    Args:
        rationale: Whether they were made with rationales; decides how queries are embedded.
        identity: What they were made with; None if that is not known.
        settings: How the embedder that made them is loaded; None if that is not known.
    """

    rationale: bool = True
    identity: VectorIdentity | None = None
    settings: dict[str, Any] | None = None

    def encode(self, documents: Sequence[Document]) -> tuple[list[Written], npt.NDArray[np.float32]]:
        """Nothing is written; the vectors at length 1. Shape: (documents, dim), float32."""
        vectors = np.stack([document.vector for document in documents if document.vector is not None])
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
        # Vectors that are of length 1 up to rounding stay as they are, bit for bit.
        return [Written()] * len(documents), np.where(np.abs(lengths - 1) < 1e-5, vectors, unit)


@contextmanager
def recording(embedder: GraceEmbedder) -> Iterator[RecordingCache]:
    """Put a RecordingCache in front of an embedder's cache while a block runs."""
    from grace_retrieval.cache.recording import RecordingCache

    cache = embedder.cache
    front = cache if isinstance(cache, RecordingCache) else RecordingCache(cache)
    embedder.writer.cache = front
    try:
        yield front
    finally:
        embedder.writer.cache = cache
