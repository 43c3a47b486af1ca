"""VectorIdentity: what the vectors of a store were made with, so that no other model's vectors get mixed with them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grace_retrieval.cache.identity import Fingerprint
from grace_retrieval.errors import InputError, ModelMismatchError

__all__ = ["VectorIdentity"]


@dataclass(frozen=True, kw_only=True)
class VectorIdentity:
    """What makes the vectors of two sources comparable: both roles' fingerprints and the number of dimensions.

    Keep `describe()` beside vectors that are stored, and call `require` before queries are compared with them.

    Attributes:
        document: Fingerprint of document vectors.
        query: Fingerprint of query vectors.
        dimension: Number of dimensions, after `truncate_dim`.
    """

    document: Fingerprint
    query: Fingerprint
    dimension: int

    @property
    def model(self) -> str:
        """Name of the model, for messages; it is not compared."""
        return self.document.model

    def digest(self) -> str:
        """32 hexadecimal digits; the same exactly if there are no differences."""
        content = self.document.digest() + self.query.digest() + self.dimension.to_bytes(8, "little")
        return hashlib.blake2b(content, digest_size=16, person=b"grace.vectors.1").hexdigest()

    def describe(self) -> dict[str, Any]:
        """Everything as JSON values; `from_description` reads it back."""
        return {
            "model": self.model,
            "dimension": self.dimension,
            "document": self.document.describe(),
            "query": self.query.describe(),
            "digest": self.digest(),
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> VectorIdentity:
        """Read back what `describe` gave, also after a trip through JSON.

        Raises:
            InputError: If a field is missing or wrong.
        """
        document, query, dimension = (description.get(name) for name in ("document", "query", "dimension"))
        if not isinstance(document, Mapping) or not isinstance(query, Mapping) or not isinstance(dimension, int):
            raise InputError(
                f"No description of a vector identity: {sorted(description)}. It has 'document' and 'query' "
                "(fingerprints) and 'dimension' (a whole number)."
            )
        return cls(
            document=Fingerprint.from_description(document),
            query=Fingerprint.from_description(query),
            dimension=dimension,
        )

    def differences(self, other: VectorIdentity) -> list[str]:
        """Say line by line how another identity differs ("here" is this one); empty if vectors can be compared."""
        lines = self.document.differences(other.document)
        lines += [f"query {line}" for line in self.query.differences(other.query) if line not in lines]
        if self.dimension != other.dimension:
            lines.append(f"dimension: {self.dimension} here, {other.dimension} there")
        return lines

    def require(self, stored: VectorIdentity, store: str) -> None:
        """Refuse vectors that were made with something else.

        Args:
            stored: Identity of the vectors in a store.
            store: Name of the store, for the message.

        Raises:
            ModelMismatchError: If vectors of the two cannot be compared; the message names both models and what
                differs.
        """
        if differences := self.differences(stored):
            raise ModelMismatchError(
                f"{store} holds vectors of the model {stored.model!r}, and these are vectors of {self.model!r} that "
                f"cannot be compared with them ({'; '.join(differences)}). Open the model the store was made with, or "
                "build the store anew."
            )
