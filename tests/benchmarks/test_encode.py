"""Throughput: both pipelines give the same vectors, rows say what ran, and finished budgets are not repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from grace_benchmarks.encode.run import EncodeOptions, run_encode
from grace_benchmarks.record import Row, RowFile, read_rows
from grace_retrieval import InputError

TEXTS = [f"Note {i}: the wind turned {i} times." for i in range(6)]


@pytest.fixture(scope="module")
def rows(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    out = RowFile(tmp_path_factory.mktemp("rows") / "encode.jsonl")
    options = EncodeOptions(
        model=str(tiny_policy), texts=6, budgets=(0, 5), batch_tokens=(None, 128), repeats=2, singles=2, device="cpu"
    )
    assert run_encode(TEXTS, options, out=out) == 0
    assert run_encode(TEXTS, options, out=RowFile(out.path)) == 14, "nothing is measured twice"
    return read_rows(out.path)


def test_one_row_a_setting(rows: list[Row]) -> None:
    settings = [("straightforward", None, "none", False), ("one pass", None, "none", False)]
    settings += [("one pass", 128, "none", False), ("straightforward", None, "none", True)]
    settings += [("one pass", None, "none", True), ("one pass", None, "cold", False), ("one pass", None, "warm", False)]
    names = ("pipeline", "batch_tokens", "cache", "single")
    for place, budget in enumerate((0, 5)):
        found = rows[place * 7 : place * 7 + 7]
        assert {row["max_new_tokens"] for row in found} == {budget}
        assert [tuple(row[name] for name in names) for row in found] == settings


def test_every_pipeline_gives_the_same_vectors(rows: list[Row]) -> None:
    # A rationale that is tokenised again may have other tokens: the straightforward pipeline's difference, not ours.
    assert all(row["largest_difference"] < 1e-5 for row in rows if row["max_new_tokens"] == 0)
    ours = {row["largest_difference"] for row in rows if row["pipeline"] == "one pass" and row["max_new_tokens"] == 5}
    assert max(ours) < 1


def test_counts_and_ratios_are_those_of_what_ran(rows: list[Row]) -> None:
    for row in rows:
        assert row["encoded"] == (2 if row["single"] else 6)
        assert len(row["wall_seconds"]) == 2
        assert row["texts_per_second_min"] <= row["texts_per_second"] <= row["texts_per_second_max"]
        if row["pipeline"] == "one pass":
            assert row["new_tokens"] == (0 if row["cache"] == "warm" else row["max_new_tokens"] * row["encoded"])
        else:
            assert row["ratio_wall"] == 1
    (warm,) = (row for row in rows if row["cache"] == "warm" and row["max_new_tokens"] == 5)
    assert warm["tokens_per_second"] == 0, "the model saw nothing"
    assert all(row["process_peak_mb"] > 50 for row in rows)


def test_the_random_policy_gives_equal_vectors(tmp_path: Path) -> None:
    out = RowFile(tmp_path / "encode.jsonl")
    run_encode([], EncodeOptions(model="random", texts=3, budgets=(8,), repeats=1, singles=1, device="cpu"), out=out)
    rows = read_rows(out.path)
    assert [row["pipeline"] for row in rows] == ["straightforward", "one pass", "straightforward", "one pass"]
    assert all(row["largest_difference"] < 1e-4 for row in rows)
    assert 30e6 < rows[0]["parameters"] < 60e6


def test_bad_input(tiny_policy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="6 texts are there and 7"):
        run_encode(TEXTS, EncodeOptions(model=str(tiny_policy), texts=7), out=RowFile(tmp_path / "e.jsonl"))
    with pytest.raises(InputError, match="repeats=0"):
        EncodeOptions(repeats=0)
    with pytest.raises(InputError, match="budgets"):
        EncodeOptions(budgets=(-1,))
