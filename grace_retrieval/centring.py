"""Centring: what all texts of a role have in common is taken away from their vectors.

A policy that was not trained to retrieve puts all texts into a narrow cone, so that every cosine is near 1. With m the
mean of a role's unit vectors x, and P the projection onto the first principal directions of the documents (none unless
asked for):

    centred = (I - P)(x - m)  made of length 1

As a map of token states it is affine, so a cosine stays a sum over tokens (`Centring.of_states`) and `explain` exact.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from grace_retrieval.errors import InputError
from grace_retrieval.stock import Module

__all__ = ["Centring", "first_words"]

Float32 = npt.NDArray[np.float32]

QUERY_WORDS = 12
LEAST_TEXTS = 8
"""Texts below which a mean says more about them than about what all texts have in common."""


def first_words(documents: Sequence[str]) -> list[str]:
    """The first words of documents, which stand for queries where there are none: short, and about the same things."""
    return [" ".join(text.split()[:QUERY_WORDS]) for text in documents]


class Centring(Module):
    """The module of sentence-transformers behind the first Normalize; another one stands behind it.

    Args:
        document: Mean of the documents' unit vectors. Shape: (dim,), float32.
        query: Mean of the queries' unit vectors. Shape: (dim,), float32.
        directions: Orthonormal directions that are taken away as well. Shape: (k, dim), float32; None for none.

    Raises:
        InputError: If a shape is wrong, or a number is not finite.
    """

    config_file_name = "centring.json"
    save_in_root = False

    def __init__(self, document: Float32, query: Float32, directions: Float32 | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.document = np.asarray(document, dtype=np.float32)
        self.query = np.asarray(query, dtype=np.float32)
        shape = (0, self.document.shape[-1])
        self.directions = np.asarray(np.zeros(shape) if directions is None else directions, dtype=np.float32)
        if self.document.ndim != 1 or self.query.shape != self.document.shape or self.directions.ndim != 2:
            raise InputError(
                f"Means of the shapes {self.document.shape} and {self.query.shape}, directions "
                f"{self.directions.shape}: give (dim,) for both means and (k, dim) for the directions."
            )
        if self.directions.shape[1] != len(self.document):
            raise InputError(f"Directions of {self.directions.shape[1]} dimensions for means of {len(self.document)}.")
        if not all(np.isfinite(part).all() for part in (self.document, self.query, self.directions)):
            raise InputError("A mean or direction holds NaN or infinity: fit it on vectors that hold neither.")

    @classmethod
    def fit(cls, documents: Float32, queries: Float32, directions: int = 0) -> Centring:
        """Take means and principal directions of vectors.

        Args:
            documents: Unit vectors of documents; zeros, of blank texts, count for nothing. Shape: (documents, dim).
            queries: Unit vectors of queries. Shape: (queries, dim).
            directions: Number of principal directions of the documents to take away.

        Raises:
            InputError: If there are too few texts.
        """
        documents, queries = (found[np.linalg.norm(found, axis=1) > 0] for found in (documents, queries))
        for name, found in (("documents", documents), ("queries", queries)):
            if len(found) < max(LEAST_TEXTS, directions + 1 if name == "documents" else 0):
                raise InputError(
                    f"Centring is fitted on {len(found)} {name} that are not blank: give "
                    f"{max(LEAST_TEXTS, directions + 1)} or more, better a few hundred."
                )
        mean = documents.mean(axis=0, dtype=np.float64)
        axes: npt.NDArray[np.float64] = np.zeros((0, documents.shape[1]))
        if directions:
            axes = np.linalg.svd(documents.astype(np.float64) - mean, full_matrices=False)[2][:directions]
        return cls(
            document=mean.astype(np.float32),
            query=queries.mean(axis=0, dtype=np.float64).astype(np.float32),
            directions=axes.astype(np.float32),
        )

    def mean(self, role: str | None) -> Float32:
        """The mean of a role; texts without one count as documents. Shape: (dim,)."""
        return self.query if role == "query" else self.document

    def of_states(self, states: Float32, role: str | None) -> Float32:
        """States of pooled tokens whose mean is the centred vector, before it is made of length 1.

        Args:
            states: States of a text's pooled tokens. Shape: (tokens, dim).
            role: "query", "document" or None.

        Returns:
            (I - P)(state / ‖mean of the states‖ - m). Shape: (tokens, dim), float32.
        """
        length = np.linalg.norm(states.mean(axis=0, dtype=np.float64)) if len(states) else 0.0
        if not length:
            return np.zeros_like(states)
        moved = states.astype(np.float64) / length - self.mean(role)
        projected = moved - moved @ self.directions.T.astype(np.float64) @ self.directions
        return projected.astype(np.float32)

    def of_vectors(self, vectors: Float32, role: str | None) -> Float32:
        """Unit vectors, centred and made of length 1 again; zeros stay zeros. Shape: (texts, dim), float32."""
        features = {"sentence_embedding": torch.from_numpy(np.ascontiguousarray(vectors)), "role": role}
        moved = self.forward(features)["sentence_embedding"]
        found: Float32 = torch.nn.functional.normalize(moved, dim=1).numpy()
        return found

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Centre `sentence_embedding`, of shape (batch, dim), by the role in `role`; zeros stay zeros."""
        vectors: torch.Tensor = features["sentence_embedding"]
        exact = vectors.to(torch.float32)
        mean, directions = (
            torch.from_numpy(part).to(exact.device) for part in (self.mean(features.get("role")), self.directions)
        )
        moved = exact - mean
        moved = moved - moved @ directions.T @ directions
        blank = exact.norm(dim=1, keepdim=True) == 0
        return {**features, "sentence_embedding": torch.where(blank, exact, moved).to(vectors.dtype)}

    def digest(self) -> str:
        """Identity of means and directions: 32 hexadecimal digits."""
        state = hashlib.blake2b(digest_size=16, person=b"grace.centring.1")
        for part in (self.document, self.query, self.directions):
            state.update(np.ascontiguousarray(part, dtype="<f4").tobytes())
        return state.hexdigest()

    def describe(self) -> dict[str, str]:
        """Means and directions as JSON values, which `from_description` reads back bit for bit."""
        parts = {"document": self.document, "query": self.query, "directions": self.directions}
        return {name: base64.b64encode(part.astype("<f4").tobytes()).decode("ascii") for name, part in parts.items()}

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Centring:
        """Read back what `describe` gave.

        Raises:
            InputError: If a part is missing or damaged.
        """
        try:
            document, query, directions = (
                np.frombuffer(base64.b64decode(description[name], validate=True), dtype="<f4").astype(np.float32)
                for name in ("document", "query", "directions")
            )
            return cls(document, query, directions.reshape(-1, len(document)))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"No description of a centring, which has document, query and directions: {error}"
            ) from error

    # ------------------------------------------------------------------ as sentence-transformers saves it

    def __repr__(self) -> str:
        """Sizes; the numbers themselves are in `describe`."""
        return f"Centring(dim={len(self.document)}, directions={len(self.directions)})"

    def get_config_dict(self) -> dict[str, Any]:
        """What is saved in centring.json."""
        return self.describe()

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Save means and directions in centring.json."""
        self.save_config(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, *args: Any, **kwargs: Any) -> Centring:
        """Load what was saved."""
        names = ("subfolder", "token", "cache_folder", "revision", "local_files_only")
        return cls.from_description(cls.load_config(model_name_or_path, **{k: kwargs[k] for k in names if k in kwargs}))
