"""The formulas, against full sums over all pairs and against derivatives taken numerically."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from grace_retrieval.explain import contributions
from grace_retrieval.explain.contributions import cosine, decompose, largest_products, mean_state, nearest_products

SHAPES = [(1, 1, 3), (7, 5, 4), (30, 41, 16)]


def states(n: int, m: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    common = rng.normal(size=dim)  # states of language models point one way
    return (
        (rng.normal(size=(n, dim)) + common).astype(np.float32),
        (rng.normal(size=(m, dim)) + common).astype(np.float32),
    )


@pytest.mark.parametrize(("n", "m", "dim"), SHAPES)
def test_contributions_are_the_sums_over_all_pairs(n: int, m: int, dim: int) -> None:
    x, y = states(n, m, dim)
    found = decompose(x, y)
    x64, y64 = x.astype(np.float64), y.astype(np.float64)
    pairs = np.einsum("id,jd->ij", x64, y64) / (n * m * np.linalg.norm(x64.mean(0)) * np.linalg.norm(y64.mean(0)))
    np.testing.assert_allclose(found.query, pairs.sum(1), atol=1e-14)
    np.testing.assert_allclose(found.document, pairs.sum(0), atol=1e-14)
    a, b = x64.mean(0), y64.mean(0)
    assert found.score == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)), abs=1e-14)
    assert found.query.sum() == pytest.approx(found.score, abs=1e-14)
    assert found.document.sum() == pytest.approx(found.score, abs=1e-14)
    np.testing.assert_allclose(found.pair_scale * (x64 @ y64.T), pairs, atol=1e-14)


@pytest.mark.parametrize(("n", "m", "dim"), SHAPES[1:])
def test_a_weight_is_the_derivative_of_the_score_by_the_tokens_share_in_the_mean(n: int, m: int, dim: int) -> None:
    x, y = states(n, m, dim)
    found = decompose(x, y)
    step = 1e-5
    for j in range(m):
        changed = []
        for sign in (1, -1):
            share = np.full(m, 1 / m)
            share[j] *= 1 + sign * step
            changed.append(cosine(mean_state(x), share @ y.astype(np.float64)))
        assert found.document_weights[j] == pytest.approx((changed[0] - changed[1]) / (2 * step), abs=1e-8)
    assert abs(found.document_weights.sum()) < 1e-14 and abs(found.query_weights.sum()) < 1e-14


def test_what_points_the_common_way_contributes_but_has_no_weight() -> None:
    """A document all of one state: every token contributes the same, none stands out."""
    found = decompose(np.ones((3, 4), np.float32), np.tile(np.float32([1, 2, 3, 4]), (5, 1)))
    np.testing.assert_allclose(found.document, found.score / 5, atol=1e-15)
    np.testing.assert_allclose(found.document_weights, 0, atol=1e-15)


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (0, 0)])
def test_a_side_without_tokens_gives_zeros(n: int, m: int) -> None:
    found = decompose(np.ones((n, 4), np.float32), np.ones((m, 4), np.float32))
    assert found.score == 0.0 and found.query.shape == (n,) and found.document.shape == (m,)
    assert not found.query.any() and not found.document.any() and not found.document_weights.any()


def test_states_that_cancel_out_give_zeros_and_no_nan() -> None:
    found = decompose(np.float32([[1, 0], [-1, 0]]), np.ones((3, 2), np.float32))
    assert found.score == 0.0 and not found.document.any()


@pytest.mark.parametrize("block", [1, 3, 512])
@pytest.mark.parametrize("count", [1, 7, 10_000])
def test_products_found_in_blocks_are_those_of_the_whole_matrix(
    monkeypatch: pytest.MonkeyPatch, block: int, count: int
) -> None:
    monkeypatch.setattr(contributions, "BLOCK", block)
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(11, 5)), rng.normal(size=(8, 5))
    whole = x @ y.T
    order = np.argsort(-whole.ravel())[:count]
    rows, columns, products = largest_products(x, y, count)
    assert (rows * 8 + columns).tolist() == order.tolist()
    np.testing.assert_allclose(products, whole.ravel()[order])
    places, nearest = nearest_products(x, y, count)
    expected = np.argsort(-whole, axis=1)[:, :count]
    assert places.tolist() == expected.tolist()
    np.testing.assert_allclose(nearest, np.take_along_axis(whole, expected, 1))


def test_products_of_nothing_are_none() -> None:
    nothing, some = np.zeros((0, 5)), np.ones((3, 5))
    for first, second in ((nothing, some), (some, nothing), (nothing, nothing)):
        assert [len(found) for found in largest_products(first, second, 4)] == [0, 0, 0]
        assert nearest_products(first, second, 4)[0].shape == (len(first), min(4, len(second)))


def test_memory_is_bounded_by_blocks_not_by_pairs_times_dimensions() -> None:
    import tracemalloc

    x, y = states(3000, 3000, 64)
    x64, y64 = x.astype(np.float64), y.astype(np.float64)
    tracemalloc.start()
    decompose(x, y)
    largest_products(x64, y64, 20)
    nearest_products(x64, y64, 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3000 * 3000 * 8 / 3  # far from one number a pair, let alone 64


def test_the_example_is_right() -> None:
    found = doctest.testmod(contributions)
    assert found.attempted > 0 and found.failed == 0
