"""Model card data that tell two embedders of one name apart."""

from __future__ import annotations

from grace_retrieval.stock import SentenceTransformerModelCardData

__all__ = ["GraceModelCardData"]


class GraceModelCardData(SentenceTransformerModelCardData):
    """Card data whose revision is the digest of the embedder's identity.

    mteb keeps results by a model's name and revision. An embedder's name is the last part of its folder, and without a
    revision mteb would answer for one prompt, dimension or set of weights with the figures of another.
    """

    @property
    def base_model_revision(self) -> str | None:
        """What changes whenever a vector may change: `VectorIdentity.digest()`."""
        model = getattr(self, "model", None)
        return None if model is None else str(model.vector_identity().digest())

    @base_model_revision.setter
    def base_model_revision(self, value: str | None) -> None:
        """A hub's revision says less: the same one gives other vectors under another prompt."""
