"""What grace-small is trained on: nothing that is held out, and titles as rationales."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytest.importorskip("trl", reason="trl needs Python 3.11: pip install 'grace-retrieval[train]'")

from grace_small.prepare import HELD_OUT, PAIRS, is_held_out, prepare

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not beside this checkout")
def test_what_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    counts = prepare(DATA, tmp_path)
    held_out = {"held-out-papers", "held-out-questions"}
    assert counts == {**PAIRS, **dict.fromkeys(held_out, HELD_OUT)}
    rows = {path.stem: pq.read_table(path).to_pylist() for path in tmp_path.iterdir()}
    trained = {row["positive"] for name in PAIRS for row in rows[name]}
    assert not {row["query"] for name in PAIRS for row in rows[name]} & {
        row["query"] for name in held_out for row in rows[name]
    }
    # A paragraph may answer several questions: the questions are held out, as the card says.
    assert len(trained & {row["positive"] for row in rows["held-out-questions"]}) == 22
    papers = {
        " ".join(text.split())
        for name in ("dev", "test")
        for text in pq.read_table(DATA / "arxiv" / f"{name}.parquet", columns=["abstract"])["abstract"].to_pylist()
    }
    assert not trained & papers
    answers = pq.read_table(DATA / "pairs" / "medquad.parquet").to_pylist()
    own = {row["positive"] for row in answers if not is_held_out(row["focus"])}
    assert not trained & {row["positive"] for row in answers if is_held_out(row["focus"])} - own
    for name, pairs in rows.items():
        if name.startswith("arxiv"):
            titles = [row for row in pairs if row["positive_rationale"] is None]
            assert 0.4 < len(titles) / len(pairs) < 0.6
            assert all(row["query_rationale"] == row["positive_rationale"] for row in pairs)
