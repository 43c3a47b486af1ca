"""The results that come along: their tables say what their rows say, and can be drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("trl", reason="trl needs Python 3.11: pip install 'grace-retrieval[train]'")
pytest.importorskip("ir_measures", reason="pip install 'grace-retrieval[bench]'")

from grace_retrieval import InputError
from grace_training.plot import plot_trade_off
from grace_training.table import make_table, read_experiments

RESULTS = Path(__file__).parents[2] / "training" / "results"
AGAINST = {
    "main": ["nano-contrastive"],
    "anchors": ["unpadded-lm-1"],
    "longer": ["unpadded-lm-1-long", "unpadded-lm-1-long-interpolated"],
}


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in RESULTS.glob("*/rows.jsonl")), ids=lambda path: path.name
)
def test_the_table_is_that_of_the_rows(folder: Path) -> None:
    table = make_table(read_experiments([folder]), against=AGAINST.get(folder.name, []))
    assert (folder / "table.md").read_text(encoding="utf-8") == table


def test_the_main_results_are_drawn(tmp_path: Path) -> None:
    rows = read_experiments([RESULTS / "main"])
    plot_trade_off(rows, tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text(encoding="utf-8")
    for name in ("nano-grace, rationale", "nano-contrastive, text", "nano-paper, rationale"):
        assert f"<!-- {name} -->" in drawn
    with pytest.raises(InputError, match="nothing to draw"):
        plot_trade_off([row for row in rows if row["kind"] != "perplexity"], tmp_path / "plot.svg")
    with pytest.raises(InputError, match=r"\.png, \.svg or \.pdf"):
        plot_trade_off(rows, tmp_path / "plot.txt")
