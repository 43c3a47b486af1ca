"""Indexes measured over files of the field, by the metric and the neighbours that they bring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from typer.testing import CliRunner

faiss = pytest.importorskip("faiss", reason="no extra of FAISS is installed")

from grace_benchmarks.ann.sources import StoredVectors  # noqa: E402
from grace_benchmarks.ann.truth import exact_neighbours  # noqa: E402
from grace_benchmarks.ann.vectors import prepare  # noqa: E402
from grace_benchmarks.record import read_rows  # noqa: E402
from grace_retrieval.cli import app  # noqa: E402
from grace_retrieval.errors import InputError  # noqa: E402

if TYPE_CHECKING:
    from click.testing import Result

RNG = np.random.default_rng(0)
# Of all lengths, so that the metrics disagree.
BASE = (RNG.standard_normal((400, 16)) * RNG.lognormal(size=(400, 1)) * 100).astype(np.float32)
QUERIES = (RNG.standard_normal((6, 16)) * 50).astype(np.float32)


def nearest(metric: str) -> np.ndarray:
    """By numpy alone, in float64."""
    base, queries = BASE.astype(np.float64), QUERIES.astype(np.float64)
    if metric == "l2":
        far = ((queries[:, None] - base[None]) ** 2).sum(2)
    else:
        far = -queries @ (base / np.linalg.norm(base, axis=1, keepdims=True) if metric == "cosine" else base).T
    return np.argsort(far, axis=1)[:, :20]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`files(metric)`: a folder with base.fvecs, queries.fvecs and neighbours by a metric."""
    from faiss.contrib.vecs_io import fvecs_write, ivecs_write

    monkeypatch.chdir(tmp_path)
    fvecs_write("base.fvecs", BASE)
    fvecs_write("queries.fvecs", QUERIES)
    for metric in ("cosine", "l2", "ip"):
        ivecs_write(f"{metric}.ivecs", nearest(metric).astype(np.int32))
    return tmp_path


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
@pytest.mark.parametrize("given", [False, True])
def test_neighbours_are_those_of_the_metric(files: Path, metric: str, given: bool) -> None:
    vectors = prepare(
        StoredVectors(path=Path("base.fvecs")),
        work=files / "work",
        queries=Path("queries.fvecs"),
        metric=metric,  # type: ignore[arg-type]
        truth=Path(f"{metric}.ivecs") if given else None,
    )
    truth = exact_neighbours(vectors, 10, work=files / "work")
    np.testing.assert_array_equal(truth.ids, nearest(metric)[:, :10])
    assert truth.recall(truth.ids, vectors) == 1.0
    wrong = np.where(np.arange(10) < 3, -1, truth.ids)
    assert truth.recall(wrong, vectors) == pytest.approx(0.7)
    np.testing.assert_array_equal(exact_neighbours(vectors, 10, work=files / "work").ids, truth.ids, "read back")


@pytest.mark.parametrize(("metric", "other"), [("cosine", "l2"), ("l2", "ip"), ("ip", "cosine")])
def test_neighbours_of_another_metric_are_refused(files: Path, metric: str, other: str) -> None:
    vectors = prepare(
        StoredVectors(path=Path("base.fvecs")),
        work=files / "work",
        queries=Path("queries.fvecs"),
        metric=metric,  # type: ignore[arg-type]
        truth=Path(f"{other}.ivecs"),
    )
    with pytest.raises(InputError, match=rf"are not those of these vectors under the metric '{metric}'.*\(metric\)"):
        exact_neighbours(vectors, 10, work=files / "work")


def test_neighbours_of_other_vectors_or_queries_are_refused(files: Path) -> None:
    from faiss.contrib.vecs_io import ivecs_write

    source = StoredVectors(path=Path("base.fvecs"))
    ivecs_write("few.ivecs", nearest("l2")[:5].astype(np.int32))
    ivecs_write("far.ivecs", nearest("l2").astype(np.int32) + 300)
    for name, complaint in (("few", "neighbours of 5 queries"), ("far", r"at places from \d+ to [4-6]\d\d")):
        with pytest.raises(InputError, match=complaint):
            prepare(source, work=files / "w", queries=Path("queries.fvecs"), metric="l2", truth=Path(f"{name}.ivecs"))
    with pytest.raises(InputError, match="are those of queries in a file"):
        prepare(source, work=files / "w", metric="l2", truth=Path("l2.ivecs"))


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(
        app, ["bench", "ann", *arguments, "--factory", "Flat", "--repeats", "3", "--out", "rows", "--work", "work"]
    )


def test_a_file_of_ann_benchmarks_is_measured_as_it_says(files: Path) -> None:
    import h5py

    with h5py.File("x.hdf5", "w") as file:
        file.attrs["distance"] = "euclidean"
        for name, data in (("train", BASE), ("test", QUERIES), ("neighbors", nearest("l2"))):
            file.create_dataset(name, data=data)
    result = bench("--vectors", "x.hdf5")
    assert result.exit_code == 0, result.output
    (row,) = read_rows(Path("rows/ann.jsonl"))
    assert (row["metric"], row["recall"], row["data"]["n"], row["data"]["queries"]) == ("L2", 1.0, 400, 6)
    (given,) = Path("work").glob("vectors/*/given.npy")
    np.testing.assert_array_equal(np.load(given), nearest("l2"))


def test_an_inner_product_and_what_does_not_go_together(files: Path) -> None:
    asked = ("--vectors", "base.fvecs", "--queries", "queries.fvecs")
    assert bench(*asked, "--metric", "ip", "--truth", "ip.ivecs").exit_code == 0
    (row,) = read_rows(Path("rows/ann.jsonl"))
    assert (row["metric"], row["recall"]) == ("inner product", 1.0)
    for arguments, complaint in (
        ((*asked, "--metric", "hamming"), "--metric hamming: give one of cosine, l2, ip."),
        ((*asked, "--truth", "l2.ivecs"), "under the metric 'cosine'"),
        (("--truth", "l2.ivecs"), "--truth goes with --vectors"),
        (("--vectors", "cosine.ivecs"), "holds whole numbers, which are places of neighbours"),
    ):
        result = bench(*arguments)
        assert result.exit_code == 1
        assert complaint in result.stderr
