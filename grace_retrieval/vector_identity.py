"""VectorIdentity: what the vectors of a store were made with, so that no other model's vectors get mixed with them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grace_retrieval.errors import InputError, ModelMismatchError
from grace_retrieval.fingerprint import Fingerprint

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
        if not isinstance(description, Mapping):
            raise InputError(f"No description of a vector identity: it is {type(description).__name__}.")
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

    def by_engine_of(self, other: VectorIdentity) -> VectorIdentity:
        """This identity as if the other's engine ran the model: what differs then differs whatever runs it."""
        document, query = (
            replace(ours, engine=theirs.engine, dtype=theirs.dtype)
            for ours, theirs in ((self.document, other.document), (self.query, other.query))
        )
        return replace(self, document=document, query=query)

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

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> VectorIdentity:
        """Read the file that `write` made.

        Raises:
            InputError: If there is no such file, or it holds something else.
        """
        try:
            description = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise InputError(
                f"{path} does not exist, so nothing says what the vectors beside it were made with. Embed the "
                "documents first; if they are there and you know that this model made them, call "
                f"embedder.vector_identity().write({str(path)!r})."
            ) from error
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is no file of a vector identity: {error}") from error
        if not isinstance(description, dict):
            raise InputError(f"{path} is no file of a vector identity: it holds {type(description).__name__}.")
        return cls.from_description(description)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Keep the identity in a file beside stored vectors. A file that is there is compared, never replaced.

        Raises:
            ModelMismatchError: If the file is of vectors that cannot be compared with these.
            InputError: If the file holds something else.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
        part.write_text(json.dumps(self.describe(), indent=1) + "\n", encoding="utf-8")
        try:
            # Whole or not at all, and the first of several processes wins.
            os.link(part, path)
        except FileExistsError:
            self.require(self.read(path), str(path))
        finally:
            part.unlink()
