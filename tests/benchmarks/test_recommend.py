"""The recommendation: a pure function of rows."""

from __future__ import annotations

import math

import pytest
from typer.testing import CliRunner

from grace_benchmarks.ann.summary import measured_rows
from grace_benchmarks.cli.recommend import parse_bytes
from grace_benchmarks.record import RESULTS, read_rows
from grace_retrieval import InputError
from grace_retrieval.cli import app
from grace_retrieval.indexing.recommend import MeasuredIndex, fill_template, measured_indexes, recommend_index


def row(
    template: str, n: int, recall: float, qps: float, size: float, search: str = "", dim: int = 256
) -> MeasuredIndex:
    return MeasuredIndex(
        template=template, search=search, n=n, dim=dim, recall=recall, qps=qps, bytes_per_vector=size, build_seconds=1.0
    )


ROWS = [
    row("Flat", 10_000, 1.0, 1000, 1024),
    row("Flat", 100_000, 1.0, 100, 1024),
    row("IVF{nlist},SQ8", 10_000, 0.98, 5000, 264, "nprobe=16"),
    row("IVF{nlist},SQ8", 100_000, 0.96, 2500, 264, "nprobe=16"),
    row("HNSW32,Flat", 10_000, 0.99, 9000, 1300),
    row("HNSW32,Flat", 100_000, 0.98, 6000, 1300),
]


def test_the_fastest_that_reaches_the_recall_and_fits_is_taken() -> None:
    assert recommend_index(100_000, 256, rows=ROWS).factory == "HNSW32,Flat"
    lean = recommend_index(100_000, 256, memory_bytes=50e6, rows=ROWS)
    assert (lean.factory, lean.search) == (fill_template("IVF{nlist},SQ8", 100_000, 256), "nprobe=16")
    assert lean.memory_bytes == 26_400_000
    assert recommend_index(100_000, 256, recall=0.99, rows=ROWS).factory == "Flat"


def test_between_sizes_values_are_interpolated_over_log_n() -> None:
    middle = recommend_index(round(10**4.5), 256, memory_bytes=20e6, rows=ROWS)
    assert middle.recall == pytest.approx(0.97, abs=1e-4)
    assert middle.qps == pytest.approx(math.sqrt(5000 * 2500), rel=0.01)
    assert middle.notes == ()
    assert [r.n for r in middle.rows] == [10_000, 100_000]


def test_beyond_the_largest_size_the_trend_goes_on_and_is_said() -> None:
    far = recommend_index(1_000_000, 256, recall=0.93, memory_bytes=1e9, rows=ROWS)
    assert far.recall == pytest.approx(0.94)
    assert far.qps == pytest.approx(1250, rel=0.01)
    assert far.notes == ("measured at 10,000 to 100,000 vectors, extrapolated to 1,000,000",)
    rising = [row("SQ8", 10_000, 0.90, 100, 256), row("SQ8", 100_000, 0.95, 50, 256)]
    assert recommend_index(10**6, 256, recall=0.95, rows=rising).recall == 0.95, "nothing gets better unmeasured"


def test_an_index_that_was_measured_at_small_sizes_only_is_not_extrapolated() -> None:
    small_only = row("IVF{nlist},PQ{pq}x4fs", 10_000, 1.0, 99_000, 40)
    assert recommend_index(10_000, 256, rows=[*ROWS, small_only]).factory == fill_template(
        small_only.template, 10_000, 256
    )
    for n in (50_000, 100_000, 10_000_000):
        assert "PQ" not in recommend_index(n, 256, recall=0.9, rows=[*ROWS, small_only]).factory


def test_other_dimensions_scale_size_and_speed() -> None:
    wide = recommend_index(100_000, 1024, rows=ROWS, recall=0.99)
    assert wide.memory_bytes == 4 * 1024 * 100_000
    assert wide.qps == pytest.approx(25)
    assert "measured with 256 dimensions" in wide.notes[0]
    assert fill_template("PQ{pq}x4fs", 10, 1026) == "PQ171x4fs", "parts must divide the dimensions"


def test_below_the_smallest_size_only_exact_search_is_known() -> None:
    small = recommend_index(500, 256, rows=ROWS)
    assert small.factory == "Flat"
    assert small.recall == 1


def test_what_cannot_be_had_is_refused_with_what_comes_nearest() -> None:
    with pytest.raises(InputError, match=r"reaches recall 0.99 in 0.0466 GiB.*best that fits is IVF512,SQ8.*smallest"):
        recommend_index(100_000, 256, recall=0.99, memory_bytes=50e6, rows=ROWS)
    for bad in ({"n": 0}, {"dim": 0}, {"recall": 1.2}, {"recall": 0.0}, {"memory_bytes": 0}):
        with pytest.raises(InputError, match="give positive sizes"):
            recommend_index(**{"n": 100, "dim": 64, **bad}, rows=ROWS)  # type: ignore[arg-type]


def test_the_package_ships_the_measured_rows() -> None:
    assert measured_indexes() == tuple(measured_rows(read_rows(RESULTS / "shipped" / "ann.jsonl")))
    assert {r.n for r in measured_indexes()} == {10_000, 100_000, 1_000_000}


def test_the_command_prints_the_factory_and_its_rows() -> None:
    result = CliRunner().invoke(
        app, "bench ann --recommend --n 5e6 --dim 1536 --memory 16GB --recall 0.9".split(), prog_name="grace"
    )
    assert result.exit_code == 0, result.output
    expected = recommend_index(5_000_000, 1536, memory_bytes=16 * 2**30, recall=0.9)
    lines = result.output.splitlines()
    assert lines[0] == expected.factory
    assert expected.search in lines[1]
    assert "extrapolated to 5,000,000" in result.output
    for measured in expected.rows:
        assert f"{measured.n:,}" in result.output


@pytest.mark.parametrize(
    ("text", "size"), [("16GB", 16 * 2**30), ("1.5 GiB", 1.5 * 2**30), ("512m", 2**29), ("99", 99)]
)
def test_sizes(text: str, size: float) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-3GB", "0GB", "16 parsecs"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(InputError, match="--memory"):
        parse_bytes(text)
