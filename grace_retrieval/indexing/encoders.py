"""What turns the documents of a shard into vectors: an embedder, or the vectors they brought."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from grace_retrieval.corpus.document import Document
from grace_retrieval.errors import InputError
from grace_retrieval.indexing.origin import check_length
from grace_retrieval.indexing.shards import Written
from grace_retrieval.rationale import RationaleMode

if TYPE_CHECKING:
    from grace_retrieval.cache import RationaleCache
    from grace_retrieval.embedder import GraceEmbedder
    from grace_retrieval.rows import Role
    from grace_retrieval.vector_identity import VectorIdentity

__all__ = ["EmbedderEncoder", "Encoder", "GivenVectors", "recording", "with_unit_vectors"]


class Encoder(Protocol):
    """Makes the rows of a shard.

    Attributes:
        rationale: Whether rationales are written.
        identity: What the vectors are made with; None if that is not known.
        settings: How the embedder is loaded; None if there is none.
        embeds: Whether it embeds, rather than taking given vectors.
    """

    embeds: bool
    rationale: RationaleMode
    identity: VectorIdentity | None
    settings: dict[str, Any] | None

    def encode(self, documents: Sequence[Document]) -> tuple[list[Written], npt.NDArray[np.float32]]:
        """What is written about documents, and their vectors. Shape: (documents, dim), float32."""


class EmbedderEncoder:
    """Embeds documents, and keeps the rationales.

    Args:
        embedder: The model.
        cache: No longer needed: the embedder's own is used.
        rationale: Whether to write rationales; None is the model's setting.
        role: What the texts are in retrieval: "document", or "query".
        on_row: Called for each text as soon as it is embedded.
    """

    def __init__(
        self,
        embedder: GraceEmbedder,
        cache: RationaleCache | None = None,
        *,
        rationale: RationaleMode | None = None,
        role: Role = "document",
        on_row: Callable[[], object] | None = None,
    ) -> None:
        from grace_retrieval.indexing.loading import embedder_settings

        if cache is not None:
            warnings.warn("cache is not needed any more: EmbedderEncoder(embedder).", DeprecationWarning, stacklevel=2)
        self.embeds = True
        self.embedder = embedder
        self.role: Role = role
        self.on_row = on_row
        self.rationale = embedder.pipeline.options.rationale if rationale is None else rationale
        self.identity: VectorIdentity | None = embedder.vector_identity(self.rationale)
        self.settings: dict[str, Any] | None = embedder_settings(embedder)

    @property
    def counts(self) -> Mapping[str, int]:
        """Distinct texts so far: "generated" by the model, and "found" in the cache."""
        return self.embedder.pipeline.counts

    def encode(self, documents: Sequence[Document]) -> tuple[list[Written], npt.NDArray[np.float32]]:
        """What is written about documents, and their vectors. Shape: (documents, dim), float32."""
        texts = [document.embedded_text for document in documents]
        found = self.embedder.encode_with_rationales(texts, self.role, rationale=self.rationale, on_row=self.on_row)
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


@dataclass(kw_only=True)
class GivenVectors:
    """Takes the vectors that the documents brought.

    Args:
        rationale: Whether they were made with rationales; decides how queries are embedded.
        identity: What they were made with; None if that is not known.
        settings: How the embedder that made them is loaded; None if that is not known.
    """

    rationale: RationaleMode = True
    identity: VectorIdentity | None = None
    settings: dict[str, Any] | None = None
    embeds: bool = field(default=False, init=False)

    @property
    def counts(self) -> Mapping[str, int]:
        """As of an EmbedderEncoder: nothing goes through a model."""
        return {"generated": 0, "found": 0}

    def encode(self, documents: Sequence[Document]) -> tuple[list[Written], npt.NDArray[np.float32]]:
        """Nothing is written; the vectors as they are. Shape: (documents, dim), float32."""
        vectors = np.stack([document.vector for document in documents if document.vector is not None])
        return [Written()] * len(documents), vectors


def with_unit_vectors(documents: Iterable[Document], identity: VectorIdentity | None = None) -> Iterator[Document]:
    """Bring given vectors to length 1; zeros, and what is of length 1 up to rounding, stay as they are, bit for bit.

    Args:
        documents: Documents with vectors.
        identity: What they are said to be made with; None if that is not known.

    Yields:
        The same documents.

    Raises:
        InputError: If a document has no vector, or one that the model cannot have made.
        ModelMismatchError: If a vector has another dimension than the model's.
    """
    dimension = 0
    for document in documents:
        if document.vector is None:
            raise InputError(
                f"{document.source or f'The document {document.id!r}'} has no vector, and there is no embedder to make "
                "one. Give an embedder, or a vector with every document."
            )
        vector = np.asarray(document.vector, dtype=np.float32)
        where = document.source or f"The document {document.id!r}"
        dimension = dimension or len(vector)
        if len(vector) != dimension:
            raise InputError(f"{where}: the vector has {len(vector)} dimensions, and those before it have {dimension}.")
        if identity is not None:
            check_length(vector, identity, where, blank=not document.embedded_text.strip())
        length = float(np.linalg.norm(vector))
        if length > 0 and abs(length - 1) > 1e-5:
            vector = vector / np.float32(length)
        yield replace(document, vector=vector)


@contextmanager
def recording(embedder: GraceEmbedder) -> Iterator[RationaleCache | None]:
    """Do nothing, as an embedder keeps vectors and rationales together by itself. It goes with the next release."""
    warnings.warn("recording(embedder) is not needed any more: leave it out.", DeprecationWarning, stacklevel=3)
    yield embedder.cache
