"""The cosine of two mean-pooled vectors as a sum over tokens, and over pairs of tokens. Numpy alone.

An embedding is the mean h of the states of its tokens, divided by its length. For n states x_i of a query and m states
y_j of a document,

    cos(q, d) = h_q · h_d / (|h_q| |h_d|) = Σ_i Σ_j p_ij      with  p_ij = x_i · y_j / (n m |h_q| |h_d|)

because the dot product is linear in either side. Summed over i, the p_ij are contributions of document tokens; summed
over j, of query tokens; both add up to the cosine. It is an identity, not an estimate. It says nothing of how a state
came about: with causal attention a state holds what its token made of all that stands before it.

**Weights** are contributions less a baseline. States of language models all point more or less one way, so nearly every
contribution c_j is positive. The baseline of document token j is the score s times what the token contributes to its
own side, a_j = y_j · h_d / (m |h_d|²), which sums up to 1:

    w_j = c_j - s a_j          Σ_j w_j = 0

To first order w_j is by how much the score falls when the token is left out of the mean, the other states unchanged:
the derivative of the cosine by the token's share in the mean. The weight of a pair is

    (x_i - x̄) · (y_j - ȳ) / (n m |h_q| |h_d|)

x̄ and ȳ being the means: p_ij less what either token contributes with the other side's average token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Decomposition", "cosine", "decompose", "largest_products", "mean_state", "nearest_products"]

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

BLOCK = 512
"""Tokens of one side that are compared at once: products are computed in blocks of this by this."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Decomposition:
    """The cosine of a query and a document, by token. See the module for the formulas.

    Attributes:
        score: The cosine.
        query: Contributions of the query's tokens. Shape: (n,), float64; sums up to `score`.
        document: Contributions of the document's tokens. Shape: (m,), float64; sums up to `score`.
        query_weights: Contributions less their baseline. Shape: (n,), float64; sums up to 0.
        document_weights: The same for the document. Shape: (m,), float64; sums up to 0.
        pair_scale: What a dot product of two states is multiplied with to be a pair's contribution.
    """

    score: float
    query: Float64
    document: Float64
    query_weights: Float64
    document_weights: Float64
    pair_scale: float


def mean_state(states: Float32) -> Float64:
    """Mean of states, added up in float64; zeros if there are none. Shape: (tokens, dim) → (dim,)."""
    if not len(states):
        return np.zeros(states.shape[1])
    return np.asarray(states.mean(axis=0, dtype=np.float64))


def cosine(first: Float64, second: Float64) -> float:
    """Cosine of two vectors of shape (dim,); 0 if one of them is zero, as for the vector of a blank text."""
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / lengths if lengths else 0.0


def decompose(query: Float32, document: Float32) -> Decomposition:
    """Split the cosine of two texts into contributions of tokens.

    Args:
        query: States of the query's pooled tokens, cut to the dimensions that are kept. Shape: (n, dim).
        document: States of the document's pooled tokens. Shape: (m, dim).

    Returns:
        The Decomposition; all zeros if a side has no tokens.

    Example:
        >>> import numpy as np
        >>> found = decompose(np.float32([[1, 0], [0, 1]]), np.float32([[3, 0], [1, 0], [0, 0]]))
        >>> found.document.round(4).tolist(), found.query.round(4).tolist(), round(found.score, 4)
        ([0.5303, 0.1768, 0.0], [0.7071, 0.0], 0.7071)
    """
    query_mean, document_mean = mean_state(query), mean_state(document)
    query_length, document_length = float(np.linalg.norm(query_mean)), float(np.linalg.norm(document_mean))
    if not query_length or not document_length:
        return Decomposition(
            score=0.0,
            query=np.zeros(len(query)),
            document=np.zeros(len(document)),
            query_weights=np.zeros(len(query)),
            document_weights=np.zeros(len(document)),
            pair_scale=0.0,
        )
    query_axis, document_axis = query_mean / query_length, document_mean / document_length
    score = float(query_axis @ document_axis)
    # Each state's part of its side's unit vector, along the other side's axis and along its own.
    query_scale, document_scale = 1 / (len(query) * query_length), 1 / (len(document) * document_length)
    from_query = _dot(query, np.stack([document_axis, query_axis], axis=1)) * query_scale
    from_document = _dot(document, np.stack([query_axis, document_axis], axis=1)) * document_scale
    return Decomposition(
        score=score,
        query=from_query[:, 0],
        document=from_document[:, 0],
        query_weights=from_query[:, 0] - score * from_query[:, 1],
        document_weights=from_document[:, 0] - score * from_document[:, 1],
        pair_scale=query_scale * document_scale,
    )


def largest_products(first: Float64, second: Float64, count: int) -> tuple[Int64, Int64, Float64]:
    """Find the largest dot products between two sets of vectors, in blocks, so that they are never all in memory.

    Args:
        first: Vectors. Shape: (n, dim).
        second: Vectors. Shape: (m, dim).
        count: How many products to find.

    Returns:
        Places in `first`, places in `second`, and the products, largest first. Shape: (found,) each.
    """
    rows, columns = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    products = np.zeros(0)
    for top in range(0, len(first), BLOCK):
        for left in range(0, len(second), BLOCK):
            block = first[top : top + BLOCK] @ second[left : left + BLOCK].T
            best = _largest(block.ravel(), count)
            rows = np.concatenate([rows, top + best // block.shape[1]])
            columns = np.concatenate([columns, left + best % block.shape[1]])
            products = np.concatenate([products, block.ravel()[best]])
            kept = np.lexsort((columns, rows, -products))[:count]
            rows, columns, products = rows[kept], columns[kept], products[kept]
    return rows, columns, products


def nearest_products(first: Float64, second: Float64, count: int) -> tuple[Int64, Float64]:
    """For each vector of `first`, find those of `second` with the largest dot products, in blocks.

    Args:
        first: Vectors. Shape: (n, dim).
        second: Vectors. Shape: (m, dim).
        count: How many to find for each.

    Returns:
        Places in `second` and the products, largest first. Shape: (n, found) each.
    """
    count = min(count, len(second))
    all_places, all_products = np.empty((len(first), count), dtype=np.int64), np.empty((len(first), count))
    for top in range(0, len(first), BLOCK):
        rows = first[top : top + BLOCK]
        places, products = np.empty((len(rows), 0), dtype=np.int64), np.empty((len(rows), 0))
        for left in range(0, len(second), BLOCK):
            block = rows @ second[left : left + BLOCK].T
            more = np.broadcast_to(np.arange(left, left + block.shape[1]), block.shape)
            places, products = np.concatenate([places, more], axis=1), np.concatenate([products, block], axis=1)
            kept = np.argsort(-products, axis=1, kind="stable")[:, :count]
            places, products = np.take_along_axis(places, kept, axis=1), np.take_along_axis(products, kept, axis=1)
        all_places[top : top + BLOCK], all_products[top : top + BLOCK] = places, products
    return all_places, all_products


def _dot(states: Float32, axes: Float64) -> Float64:
    """Dot products in float64, a block of states at a time. Shape: (tokens, dim), (dim, axes) → (tokens, axes)."""
    found = np.empty((len(states), axes.shape[1]))
    for start in range(0, len(states), BLOCK):
        found[start : start + BLOCK] = states[start : start + BLOCK].astype(np.float64) @ axes
    return found


def _largest(values: Float64, count: int) -> Int64:
    """Places of the largest values, in no order."""
    if count >= len(values):
        return np.arange(len(values))
    return np.argpartition(-values, count)[:count]
