"""The program that needs a GPU works at the first try: its parts run here, at small sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="trl needs Python 3.11: pip install 'grace-retrieval[train]'")

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(str(ROOT / folder) for folder in (".", "training", "benchmarks"))
    return subprocess.run(
        [sys.executable, "-m", "programs.gpu", *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    done = run("--device", "cpu", "--out", str(tmp_path / "rows.jsonl"))
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["part"] for row in rows] == ["engine small"] * 5 + ["equality"] * 2 + ["training"] * 2 + ["faiss"] * 2
    assert [row["status"] for row in rows[:-1]] == ["ok"] * 10, [row["status"] for row in rows]
    assert rows[-1]["status"].startswith("not run: this FAISS")
    exact, half = rows[5:7]
    assert exact["same_rationales"] == exact["of"] == 8
    assert exact["lowest_cosine_with_given_rationales"] > 0.99999
    assert half["lowest_cosine_with_given_rationales"] > 0.99
    assert all(row["on"].startswith("cpu, at a small size") for row in rows[:-1])


def test_no_time_is_a_row_for_each_part(tmp_path: Path) -> None:
    assert run("--device", "cpu", "--seconds", "0", "--out", str(tmp_path / "rows.jsonl")).returncode == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row["status"] for row in rows} == {"not run: no time was left"}
    assert len(rows) == 4


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    done = run("--out", str(tmp_path / "rows.jsonl"))
    assert done.returncode == 2
    assert "torch sees no GPU here" in done.stderr and not (tmp_path / "rows.jsonl").exists()
