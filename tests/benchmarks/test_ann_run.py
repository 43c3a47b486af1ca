"""Measuring indexes: real FAISS in child processes, rows, failures, kills and resumption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grace_benchmarks.ann.generate import GeneratedVectors
from grace_benchmarks.ann.plan import AnnOptions, IndexSpec
from grace_benchmarks.ann.run import run_ann
from grace_benchmarks.ann.summary import agreement, pareto_front
from grace_benchmarks.ann.vectors import Vectors, prepare
from grace_benchmarks.record import Row, RowFile, read_rows
from grace_retrieval import InputError

faiss = pytest.importorskip("faiss", reason="the extra 'cpu' is not installed")

OPTIONS = AnnOptions(repeats=3, singles=20)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def vectors(work: Path) -> Vectors:
    return prepare(GeneratedVectors(n=3000, dim=32, queries=60), work=work)


@pytest.fixture(scope="module")
def rows(work: Path, vectors: Vectors) -> list[Row]:
    """Rows of a few indexes, two of which FAISS refuses."""
    indexes = [
        IndexSpec(factory="Flat"),
        IndexSpec(factory="Nonsense7"),
        IndexSpec(factory="IVF{nlist},Flat", search=["nprobe=1", "nprobe=64", "efSearch=3"]),
        IndexSpec(factory="SQ8"),
        IndexSpec(factory="Flat", shard_rows=1100),
        IndexSpec(factory="HNSW8,Flat", min_n=10_000),
        IndexSpec(factory="Flat", device="gpu"),
    ]
    file = RowFile(work / "rows" / "ann.jsonl")
    assert run_ann(vectors, indexes, OPTIONS, out=file, work=work) == 0
    assert run_ann(vectors, indexes, OPTIONS, out=file, work=work) == 7, "nothing is measured twice"
    return read_rows(file.path)


def pick(rows: list[Row], factory: str, search: str = "", shard_rows: int = 0) -> Row:
    (found,) = (r for r in rows if (r["factory"], r["search"], r["shard_rows"]) == (factory, search, shard_rows))
    return found


def test_recall_is_that_of_faiss_by_hand(rows: list[Row], vectors: Vectors) -> None:
    base, queries = np.concatenate(list(vectors.blocks())), vectors.query_vectors()
    exact = np.argsort(-(queries.astype(np.float64) @ base.astype(np.float64).T), axis=1)[:, :10]
    assert pick(rows, "Flat")["recall"] == 1
    assert pick(rows, "Flat", shard_rows=1100)["recall"] == 1, "shards from disk, merged, find what one index finds"
    index = faiss.index_factory(32, "SQ8", faiss.METRIC_L2)
    index.train(base)
    index.add(base)
    found = index.search(queries, 10)[1]
    expected = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)])
    assert pick(rows, "SQ8")["recall"] == pytest.approx(expected, abs=0.004)
    assert pick(rows, "IVF64,Flat", "nprobe=64")["recall"] == 1, "all lists are searched"
    assert 0.1 < pick(rows, "IVF64,Flat", "nprobe=1")["recall"] < 0.99


def test_a_row_says_what_it_measured(rows: list[Row], vectors: Vectors) -> None:
    row = pick(rows, "IVF64,Flat", "nprobe=1")
    assert row["data"] == vectors.describe()
    assert row["bytes_per_vector"] == pytest.approx(32 * 4 + 8, rel=0.1), "codes and ids"
    assert row["train_seconds"] > 0
    assert row["add_seconds"] > 0
    for kind in ("batch", "single"):
        assert row[f"{kind}_qps_min"] <= row[f"{kind}_qps"] <= row[f"{kind}_qps_max"]
    assert row["latency_p50_ms"] <= row["latency_p95_ms"]
    assert row["faiss"]["version"] == faiss.__version__
    assert {"commit", "versions", "processor", "cores"} <= set(row["environment"])
    assert row["template"] == "IVF{nlist},Flat"
    assert (row["threads"], row["device"], row["repeats"]) == (1, "cpu", 3)


def test_what_faiss_refuses_is_a_failed_row_with_the_reason(rows: list[Row]) -> None:
    assert len(rows) == 7
    assert pick(rows, "Nonsense7")["failed"] == "could not parse index string Nonsense7"
    assert "could not set parameter efSearch" in pick(rows, "IVF64,Flat", "efSearch=3")["failed"]
    assert all(row["status"] == ("failed" if "failed" in row else "ok") for row in rows)


def test_peak_memory_is_that_of_the_index(work: Path, tmp_path: Path) -> None:
    vectors = prepare(GeneratedVectors(n=60_000, dim=64, queries=10), work=work)
    held = np.ones(200_000_000 // 8)  # the memory of this process must not count
    out = RowFile(tmp_path / "ann.jsonl")
    run_ann(vectors, [IndexSpec(factory="Flat"), IndexSpec(factory="SQ8")], OPTIONS, out=out, work=work)
    flat, small = read_rows(out.path)
    index, block = 60_000 * 64 * 4 / 2**20, 60_000 * 64 * 4 / 2**20
    assert held.nbytes / 2**20 > 180
    assert index < flat["build_peak_mb"] < index + block + 40
    assert flat["search_peak_mb"] > index
    assert small["bytes_per_vector"] < 0.3 * flat["bytes_per_vector"]


def test_a_second_run_gives_the_same_recall(work: Path, vectors: Vectors, tmp_path: Path) -> None:
    out = RowFile(tmp_path / "ann.jsonl")
    spec = [IndexSpec(factory="IVF{nlist},PQ8x4fs,Refine(SQ8)", search=["nprobe=4,k_factor_rf=2", "nprobe=16"])]
    for run in (1, 2):
        run_ann(vectors, spec, AnnOptions(repeats=3, singles=20, run=run), out=out, work=work)
    rows = read_rows(out.path)
    assert [row["run"] for row in rows] == [1, 1, 2, 2]
    entries = agreement(rows[:2], rows[2:])
    assert [entry["recall_equal"] for entry in entries] == [True, True]
    assert all(0.05 < entry["single_ratio"] < 20 for entry in entries)


def test_agreement_sees_what_differs() -> None:
    row: Row = {
        "kind": "ann", "status": "ok", "factory": "SQ8", "search": "", "threads": 1, "device": "cpu", "shard_rows": 0,
        "data": {"digest": "x", "n": 10}, "recall": 0.9,
        "single_qps": 100.0, "single_qps_min": 90.0, "single_qps_max": 110.0,
        "batch_qps": 100.0, "batch_qps_min": 90.0, "batch_qps_max": 110.0,
    }  # fmt: skip
    faster = {**row, "recall": 0.8, "single_qps": 200.0, "single_qps_min": 190.0, "single_qps_max": 210.0}
    (entry,) = agreement([row], [faster])
    assert (entry["recall_equal"], entry["single_overlap"], entry["batch_overlap"]) == (False, False, True)
    assert entry["single_ratio"] == 2


def test_the_front_holds_what_nothing_beats() -> None:
    points = [("a", 1.0, 10.0), ("b", 0.9, 100.0), ("c", 0.8, 50.0), ("d", 0.7, 200.0)]
    rows = [{"key": key, "recall": recall, "single_qps": qps} for key, recall, qps in points]
    assert [row["key"] for row in pareto_front(rows)] == ["d", "b", "a"]


def grace(*arguments: object, **options: Any) -> list[str]:
    return [sys.executable, "-m", "grace_retrieval", "bench", "ann", *map(str, arguments)]


COMMAND = (
    "--n", "20000", "--dim", "32", "--queries", "100", "--repeats", "3",
    *(part for factory in ("Flat", "SQ8", "HNSW32,Flat", "IVF64,SQ8") for part in ("--factory", factory)),
)  # fmt: skip


def test_a_killed_run_resumes_without_repeating_finished_rows(tmp_path: Path) -> None:
    command = grace(*COMMAND, "--out", tmp_path / "out", "--work", tmp_path / "work")
    file = tmp_path / "out" / "ann.jsonl"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as child:
        deadline = time.monotonic() + 120
        while not (file.exists() and file.read_bytes().count(b"\n") >= 2):
            assert time.monotonic() < deadline, "no rows"
            assert child.poll() is None, "the run ended before it was killed"
            time.sleep(0.01)
        os.killpg(child.pid, signal.SIGKILL)
    finished = file.read_bytes()
    assert finished.count(b"\n") < 4
    # A write that the kill tore in the middle must not spoil the next row.
    file.write_bytes(finished + b'{"key": "torn", "fac')
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    rows = read_rows(file)
    assert file.read_bytes().startswith(finished), "finished rows are as they were"
    assert [row["factory"] for row in rows] == ["Flat", "SQ8", "HNSW32,Flat", "IVF64,SQ8"]
    assert len({row["key"] for row in rows}) == 4
    assert f"{finished.count(bytes([10]))} rows were there already" in result.stdout


def test_an_index_whose_process_is_killed_is_a_failed_row(
    work: Path, vectors: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONSTARTUP", "")
    killer = tmp_path / "sitecustomize.py"
    killer.write_text(
        "import os, signal, sys\n"
        "if 'grace_benchmarks.ann.worker' in sys.orig_argv: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    out = RowFile(tmp_path / "ann.jsonl")
    run_ann(vectors, [IndexSpec(factory="Flat"), IndexSpec(factory="SQ8")], OPTIONS, out=out, work=work)
    rows = read_rows(out.path)
    assert [row["status"] for row in rows] == ["failed", "failed"]
    assert "SIGKILL" in rows[0]["failed"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"repeats": 2}, "repeats=2.*at least 3"), ({"k": 0}, "k=0"), ({"threads": 0}, "threads=0")],
)
def test_options_are_checked(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AnnOptions(**options)


def test_rows_that_are_no_rows(tmp_path: Path) -> None:
    file = tmp_path / "ann.jsonl"
    file.write_text("{}\nnot json\n{}\n")
    with pytest.raises(InputError, match="is not a result file"):
        read_rows(file)
    document = json.loads((ROOT / "benchmarks" / "results" / "engine.json").read_text())
    rows = read_rows(ROOT / "benchmarks" / "results" / "engine.json")
    assert len(rows) == len(document["rows"])
    assert rows[0]["environment"] == document["environment"]
