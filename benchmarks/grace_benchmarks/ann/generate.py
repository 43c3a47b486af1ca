"""Vectors that look like embeddings: clustered, anisotropic, and the same for the same seed.

    x = normalise(m + R diag(s) (c + w z))      z ~ N(0, I),  c one of the centres ~ N(0, I),  s_i ∝ (1 + i)^-decay

R is a random rotation, so that no axis is special; s gives the slowly falling spectrum of real embeddings; the common
mean m makes unrelated vectors similar, as they are in language models; cluster sizes fall like 1 / rank. Every block
has its own random stream, so block 7 is the same whether or not blocks 0 to 6 were made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_retrieval.errors import InputError

__all__ = ["BLOCK_ROWS", "GeneratedVectors"]

BLOCK_ROWS = 65_536
"""Rows that come from one random stream."""

_QUERIES = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class GeneratedVectors:
    """A made-up matrix of unit vectors with held-out queries from the same distribution.

    Args:
        n: Vectors.
        dim: Dimensions, 2 to 4,096.
        seed: Seed of everything.
        queries: Queries.
        decay: Fall of the spectrum: 0 is a ball, 1 has few directions that matter.
        spread: Distance within a cluster, in units of the distance between clusters.
        mean: Length of the common mean, in the same units.

    Raises:
        InputError: If a value is out of range.

    Example:
        >>> block = next(GeneratedVectors(n=100, dim=16).blocks())
        >>> block.shape
        (100, 16)
    """

    n: int
    dim: int
    seed: int = 0
    queries: int = 1000
    decay: float = 0.5
    spread: float = 1.5
    mean: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, low, high in (("n", 2, 10**9), ("dim", 2, 4096), ("queries", 1, 10**6), ("seed", 0, 2**31)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise InputError(f"{name}={value!r} of generated vectors: give a whole number from {low} to {high:,}.")

    @property
    def rows(self) -> int:
        """Number of vectors."""
        return self.n

    def describe(self) -> dict[str, Any]:
        """What decides the vectors."""
        return {
            "generator": "clustered",
            "version": 1,
            **{name: getattr(self, name) for name in ("n", "dim", "seed", "queries", "decay", "spread", "mean")},
        }

    def blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        """The vectors. Shape of each: (up to `BLOCK_ROWS`, dim)."""
        for block, start in enumerate(range(0, self.n, BLOCK_ROWS)):
            yield self._draw(block, min(BLOCK_ROWS, self.n - start))

    def query_vectors(self) -> npt.NDArray[np.float32]:
        """The queries. Shape: (queries, dim)."""
        return self._draw(_QUERIES, self.queries)

    @cached_property
    def _shape(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float64], Any]:
        """Rotation and spectrum in one matrix, centres, running sum of cluster sizes, and mean."""
        random = np.random.default_rng([self.seed, self.dim])
        rotation, _ = np.linalg.qr(random.standard_normal((self.dim, self.dim)))
        spectrum = (1.0 + np.arange(self.dim)) ** -self.decay
        spectrum /= np.sqrt((spectrum**2).sum())
        turn = (spectrum[:, None] * rotation).astype(np.float32)
        clusters = max(4, round(self.n**0.5))
        centres = random.standard_normal((clusters, self.dim)).astype(np.float32) @ turn
        sizes = 1.0 / (10.0 + np.arange(clusters))
        mean = random.standard_normal(self.dim)
        mean *= self.mean / np.linalg.norm(mean)
        return turn, centres, np.cumsum(sizes / sizes.sum()), mean.astype(np.float32)

    def _draw(self, block: int, rows: int) -> npt.NDArray[np.float32]:
        turn, centres, sizes, mean = self._shape
        random = np.random.default_rng([self.seed, self.dim, self.n, block])
        of = np.minimum(np.searchsorted(sizes, random.random(rows)), len(centres) - 1)
        noise = random.standard_normal((rows, self.dim), dtype=np.float32) @ turn
        vectors: npt.NDArray[np.float32] = mean + centres[of] + np.float32(self.spread) * noise
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors
