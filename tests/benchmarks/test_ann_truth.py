"""Exact neighbours and recall, against numpy in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from grace_benchmarks.ann.generate import GeneratedVectors
from grace_benchmarks.ann.sources import StoredVectors
from grace_benchmarks.ann.truth import exact_neighbours
from grace_benchmarks.ann.vectors import Vectors, prepare
from grace_retrieval import InputError

faiss = pytest.importorskip("faiss", reason="the extra 'cpu' is not installed")


@pytest.fixture
def vectors(tmp_path: Path) -> Vectors:
    return prepare(GeneratedVectors(n=900, dim=24, queries=40), work=tmp_path)


def by_numpy(vectors: Vectors, k: int) -> tuple[np.ndarray, np.ndarray]:
    base = np.concatenate(list(vectors.blocks())).astype(np.float64)
    queries = vectors.query_vectors().astype(np.float64)
    distances = ((queries[:, None, :] - base[None]) ** 2).sum(-1)
    order = np.argsort(distances, axis=1)[:, :k]
    return order, np.take_along_axis(distances, order, 1)


def test_the_neighbours_are_those_of_numpy(vectors: Vectors, tmp_path: Path) -> None:
    ids, distances = by_numpy(vectors, 10)
    truth = exact_neighbours(vectors, 10, work=tmp_path)
    np.testing.assert_allclose(truth.distances, distances, atol=1e-12)
    np.testing.assert_array_equal(truth.ids, ids)


def test_recall_counts_what_was_found(vectors: Vectors, tmp_path: Path) -> None:
    truth = exact_neighbours(vectors, 10, work=tmp_path)
    assert truth.recall(truth.ids, vectors) == 1
    assert truth.recall(truth.ids[:, ::-1], vectors) == 1, "the order does not matter"
    half = truth.ids.copy()
    half[:, 5:] = -1
    assert truth.recall(half, vectors) == 0.5
    repeated = np.repeat(truth.ids[:, :1], 10, axis=1)
    assert truth.recall(repeated, vectors) == pytest.approx(0.1), "a vector counts once"
    farthest = np.tile(np.arange(900), (40, 1))
    base, queries = np.concatenate(list(vectors.blocks())), vectors.query_vectors()
    farthest = np.argsort(queries @ base.T, axis=1)[:, :10]
    assert truth.recall(farthest, vectors) == 0


def test_of_equal_vectors_any_will_do(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    few = rng.standard_normal((30, 8)).astype(np.float32)
    np.save(tmp_path / "twins.npy", np.repeat(few, 8, axis=0))
    np.save(tmp_path / "queries.npy", few[:10] + 0.01)
    vectors = prepare(StoredVectors(path=tmp_path / "twins.npy"), work=tmp_path, queries=tmp_path / "queries.npy")
    truth = exact_neighbours(vectors, 4, work=tmp_path)
    others = np.array([[i * 8 + j for j in (7, 6, 5, 4)] for i in range(10)])
    assert not np.array_equal(np.sort(truth.ids, 1), np.sort(others, 1))
    assert truth.recall(others, vectors) == 1


def test_the_truth_is_searched_once_and_checked(
    vectors: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = exact_neighbours(vectors, 10, work=tmp_path)
    monkeypatch.setattr(faiss, "IndexFlat", None)  # a second search would fail
    np.testing.assert_array_equal(exact_neighbours(vectors, 10, work=tmp_path).ids, first.ids)
    (file,) = (tmp_path / "truth").glob("*.npz")
    np.savez(file, ids=first.ids[:, ::-1], distances=first.distances)
    with pytest.raises(InputError, match=r"damaged.*distances of query 0.*remove it"):
        exact_neighbours(vectors, 10, work=tmp_path)
    file.write_bytes(b"PK torn")
    with pytest.raises(InputError, match="damaged"):
        exact_neighbours(vectors, 10, work=tmp_path)


@pytest.mark.parametrize("k", [0, 901])
def test_k_must_be_possible(vectors: Vectors, tmp_path: Path, k: int) -> None:
    with pytest.raises(InputError, match=rf"k={k}: give a number from 1 to 900"):
        exact_neighbours(vectors, k, work=tmp_path)
