"""Vectors of a benchmark: made up, read from files, and refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grace_benchmarks.ann import generate
from grace_benchmarks.ann.generate import GeneratedVectors
from grace_benchmarks.ann.sources import StoredVectors
from grace_benchmarks.ann.vectors import prepare
from grace_retrieval import InputError


def stored(folder: Path, matrix: np.ndarray, name: str = "vectors.npy") -> StoredVectors:
    np.save(folder / name, matrix)
    return StoredVectors(path=folder / name)


@pytest.fixture
def matrix() -> np.ndarray:
    return np.random.default_rng(3).standard_normal((200, 12)).astype(np.float32) * 5


def test_generated_vectors_depend_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "BLOCK_ROWS", 100)
    vectors = GeneratedVectors(n=250, dim=16, seed=4)
    first, second = list(vectors.blocks()), list(GeneratedVectors(n=250, dim=16, seed=4).blocks())
    assert [len(block) for block in first] == [100, 100, 50]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(first[0], next(GeneratedVectors(n=250, dim=16, seed=5).blocks()))
    assert not np.array_equal(first[0][:50], first[1][:50])


def test_generated_vectors_are_unit_clustered_and_anisotropic() -> None:
    vectors = np.concatenate(list(GeneratedVectors(n=4000, dim=64).blocks()))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosines = vectors[:500] @ vectors[500:].T
    assert 0.1 < cosines.mean() < 0.6, "unrelated vectors are similar, as in language models"
    isotropic = np.random.default_rng(0).standard_normal((4000, 64))
    isotropic /= np.linalg.norm(isotropic, axis=1, keepdims=True)
    # Clustered: the nearest neighbour stands out from the mean by far more than in a ball.
    ball = isotropic[:500] @ isotropic[500:].T
    assert cosines.max(1).mean() - cosines.mean() > 1.1 * (ball.max(1).mean() - ball.mean())
    values = np.linalg.eigvalsh(np.cov(vectors.T))
    assert values.sum() ** 2 / (values**2).sum() < 0.6 * 64, "few directions carry much of the variance"


@pytest.mark.parametrize("dim", [2, 1024])
def test_generated_vectors_of_any_width(dim: int) -> None:
    assert next(GeneratedVectors(n=8, dim=dim).blocks()).shape == (8, dim)


@pytest.mark.parametrize(("name", "value"), [("n", 1), ("dim", 5000), ("seed", -1), ("queries", 0), ("n", 2.5)])
def test_generated_vectors_have_bounds(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"{name}={value}"):
        GeneratedVectors(**{"n": 10, "dim": 8, name: value})  # type: ignore[arg-type]


def test_npy_parquet_and_a_folder_of_parquet_give_the_same_vectors(tmp_path: Path, matrix: np.ndarray) -> None:
    rows = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), 12)
    pq.write_table(pa.table({"id": list(map(str, range(200))), "vector": rows}), tmp_path / "all.parquet")
    folder = tmp_path / "index" / "shards"
    folder.mkdir(parents=True)
    for place in range(2):
        pq.write_table(pa.table({"vector": rows[place * 100 : place * 100 + 100]}), folder / f"{place}.parquet")
    pq.write_table(pa.table({"word": ["not vectors"]}), folder / "words.parquet")
    found = [
        prepare(source, work=tmp_path / "work", queries=10)
        for source in (
            stored(tmp_path, matrix),
            StoredVectors(path=tmp_path / "all.parquet"),
            StoredVectors(path=tmp_path / "index"),
        )
    ]
    assert len({vectors.digest for vectors in found}) == 1
    base, queries = np.concatenate(list(found[0].blocks())), found[0].query_vectors()
    assert base.shape == (190, 12)
    assert queries.shape == (10, 12)
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    both = np.concatenate([base, queries])
    np.testing.assert_allclose(both[np.lexsort(both.T)], unit[np.lexsort(unit.T)], atol=1e-6)


def test_queries_of_a_file_leave_the_matrix_whole(tmp_path: Path, matrix: np.ndarray) -> None:
    np.save(tmp_path / "queries.npy", matrix[:3])
    vectors = prepare(stored(tmp_path, matrix), work=tmp_path / "work", queries=tmp_path / "queries.npy")
    assert (vectors.n, vectors.queries) == (200, 3)
    gathered = vectors.gather(np.array([5, 199, 0]))
    np.testing.assert_allclose(gathered, np.concatenate(list(vectors.blocks()))[[5, 199, 0]])


def test_prepared_vectors_are_found_again_and_a_changed_file_is_not_mistaken(
    tmp_path: Path, matrix: np.ndarray
) -> None:
    first = prepare(stored(tmp_path, matrix), work=tmp_path / "work")
    made = (first.folder / "vectors.json").stat().st_mtime_ns
    again = prepare(stored_again(tmp_path), work=tmp_path / "work")
    assert again.folder == first.folder
    assert (again.folder / "vectors.json").stat().st_mtime_ns == made
    assert prepare(stored(tmp_path, matrix[:150]), work=tmp_path / "work").digest != first.digest


def stored_again(folder: Path) -> StoredVectors:
    return StoredVectors(path=folder / "vectors.npy")


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, "NaN or infinity"), (np.inf, "NaN or infinity"), (0.0, "only zeros")]
)
def test_rows_without_a_direction_are_refused_or_left_out(
    tmp_path: Path, matrix: np.ndarray, value: float, reason: str
) -> None:
    matrix[7] = value
    np.save(tmp_path / "queries.npy", matrix[:3])
    source = stored(tmp_path, matrix)
    with pytest.raises(InputError, match=rf"1 rows have no direction \(row 7 of these has {reason}.*skip_bad=True"):
        prepare(source, work=tmp_path / "work", queries=tmp_path / "queries.npy")
    assert not list((tmp_path / "work" / "vectors").iterdir()), "nothing half made stays behind"
    vectors = prepare(source, work=tmp_path / "work", queries=tmp_path / "queries.npy", skip_bad=True)
    assert (vectors.n, vectors.dropped) == (199, 1)


def test_matrices_that_cannot_be_searched(tmp_path: Path, matrix: np.ndarray) -> None:
    with pytest.raises(InputError, match="holds no vectors"):
        stored(tmp_path, np.zeros((0, 4), dtype=np.float32))
    with pytest.raises(InputError, match=r"holds one row.*queries"):
        prepare(stored(tmp_path, matrix[:1]), work=tmp_path / "work")
    np.save(tmp_path / "one.npy", matrix[1:2])
    lone = prepare(stored(tmp_path, matrix[:1]), work=tmp_path / "work", queries=tmp_path / "one.npy")
    assert lone.n == 1
    with pytest.raises(InputError, match=r"shape \(4,\)"):
        stored(tmp_path, np.ones(4, dtype=np.float32))
    with pytest.raises(InputError, match="dtype int64"):
        stored(tmp_path, np.ones((4, 4), dtype=np.int64))
    with pytest.raises(InputError, match="does not exist"):
        StoredVectors(path=tmp_path / "no.npy")
    np.save(tmp_path / "wide.npy", np.ones((3, 13), dtype=np.float32))
    with pytest.raises(InputError, match=r"of 12 and of 13 dimensions"):
        prepare(stored(tmp_path, matrix), work=tmp_path / "work", queries=tmp_path / "wide.npy")
    pq.write_table(pa.table({"vector": [[1.0, 2.0], [3.0]]}), tmp_path / "ragged.parquet")
    with pytest.raises(InputError, match="different numbers of dimensions"):
        prepare(StoredVectors(path=tmp_path / "ragged.parquet"), work=tmp_path / "work")
    pq.write_table(pa.table({"other": [[1.0, 2.0]]}), tmp_path / "named.parquet")
    with pytest.raises(InputError, match="no column 'vector'"):
        prepare(StoredVectors(path=tmp_path / "named.parquet"), work=tmp_path / "work", queries=tmp_path / "one.npy")
