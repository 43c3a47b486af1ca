"""`grace bench` as a plug-in: found without imports, suites that hold what they name, errors and interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from grace_benchmarks.record import read_rows
from grace_benchmarks.suites import load_suite, suite_names
from grace_retrieval import InputError
from grace_retrieval.cli import app
from grace_retrieval.cli.plugins import load_plugin, plugin_names

if TYPE_CHECKING:
    from click.testing import Result

HEAVY = ("torch", "transformers", "faiss", "numpy", "pyarrow", "matplotlib", "mteb", "scipy", "yaml", "ir_measures")

if "bench" not in plugin_names():
    pytest.skip("install the package again (pip install -e .): it has a new entry point", allow_module_level=True)


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)], prog_name="grace")


def test_the_command_is_found_and_loads_nothing_heavy() -> None:
    code = (
        "import json, sys\nfrom typer.testing import CliRunner\nfrom grace_retrieval.cli import app\n"
        "first = CliRunner().invoke(app, ['embed', '--help'])\n"
        "plugin = 'grace_benchmarks' in sys.modules\n"
        "asked = (['--help'], ['bench', '--help'], ['bench', 'ann', '--help'])\n"
        "outputs = [CliRunner().invoke(app, arguments).output for arguments in asked]\n"
        f"print(json.dumps([plugin, outputs, [name for name in {HEAVY!r} if name in sys.modules]]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    plugin, (top, group, command), heavy = json.loads(result.stdout)
    assert not plugin, "another command does not import it"
    assert "bench" in top
    for name in ("ann", "retrieval", "encode", "report", "suite"):
        assert name in group
    assert "--recommend" in command
    assert heavy == []
    assert load_plugin("nonsense") is None


def test_the_core_imports_no_benchmarks() -> None:
    import grace_retrieval

    core = Path(grace_retrieval.__file__).parent
    assert not [
        file.name for file in core.rglob("*.py") if "import grace_benchmarks" in file.read_text(encoding="utf-8")
    ]
    assert not [file.name for file in core.rglob("*.py") if "from grace_benchmarks" in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", ["quick", "shipped", "budgets", "growth", "large", "paper"])
def test_every_suite_can_be_read(name: str) -> None:
    suite = load_suite(name)
    assert suite.about
    assert name in suite_names()


def test_the_paper_names_the_56_tasks_and_mteb_has_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    mteb = pytest.importorskip("mteb", reason="the extra 'bench' is not installed")
    from grace_benchmarks.retrieval.tasks import tasks_by_name

    part = load_suite("paper").retrieval
    assert part is not None
    assert len(part.tasks) == len(set(part.tasks)) == 56
    assert len(tasks_by_name(part.tasks)) == 56
    assert set(part.tasks) == {task.metadata.name for task in mteb.get_benchmark("MTEB(eng, v1)").tasks}


def test_scale_makes_a_suite_smaller() -> None:
    part = load_suite("large", scale=0.0001).ann
    assert part is not None
    assert [source.source.rows for source in part.vectors] == [1000, 10_000]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ann: {vectors: [{n: 10, dim: 4}], indexes: [{factroy: Flat}]}", "unknown factroy. Known are factory"),
        ("ann: {vectors: [{n: 10}], indexes: [{factory: Flat}]}", "missing .* 'dim'"),
        ("ann: {vectors: [{n: 10, dim: 4}], indexes: [{factory: Flat, search: nprobe=3}]}", "list of strings"),
        ("ann: {vectors: []}", "give vectors and indexes"),
        ("ann: {options: {repeats: 1}, vectors: [{n: 10, dim: 4}], indexes: [{factory: Flat}]}", "repeats=1"),
        ("retreival: {}", "unknown retreival"),
        ("about: nothing", "runs nothing"),
        ("- a list", "give a mapping"),
        ("ann: {vectors: [", "not YAML"),
    ],
)
def test_suites_that_are_wrong_say_where(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        load_suite(str(file))


def test_a_suite_of_ones_own_runs_whole_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "about: Small.\n"
        "ann:\n  options: {repeats: 3, singles: 5}\n  vectors: [{n: 400, dim: 8, queries: 10}]\n"
        "  indexes: [{factory: Flat}, {factory: 'IVF500,Flat'}]\n"
        "retrieval: {pairs: [{path: demo}], columns: [bm25]}\n"
    )
    out = tmp_path / "out"
    first = bench("suite", file, "--out", out, "--work", tmp_path / "work")
    assert first.exit_code == 0, first.output
    assert (out / "report" / "index.html").exists()
    assert "IVF500,Flat : failed: Number of training points (400) should be at least" in first.output
    assert [row["status"] for row in read_rows(out / "ann.jsonl")] == ["ok", "failed"]
    again = bench("suite", file, "--out", out, "--work", tmp_path / "work")
    assert "2 rows were there already" in again.output
    assert len(read_rows(out / "ann.jsonl")) == 2
    second = bench("suite", file, "--out", tmp_path / "second", "--work", tmp_path / "work", "--quiet")
    assert second.output == ""
    compared = bench("report", out, tmp_path / "second", "--compare")
    assert "recall equal in 1 of 1" in compared.output


def test_a_benchmark_of_which_every_row_failed_is_an_error_then_and_again(tmp_path: Path) -> None:
    command = ("ann", "--n", "200", "--dim", "8", "--queries", "5", "--factory", "IVF500,Flat", "--out", tmp_path)
    for arguments in (command, (*command, "--quiet")):
        done = bench(*arguments)
        assert done.exit_code == 1
        assert "Nothing was measured: all 1 rows in" in done.output and "training points" in done.output
    assert [row["status"] for row in read_rows(tmp_path / "ann.jsonl")] == ["failed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ann", "--suite", "nonsense"), "There is no suite 'nonsense': give one of"),
        (("ann", "--suite", "quick", "--factory", "Flat"), "leave out --vectors and --factory"),
        (("ann", "--suite", "budgets"), "measures no indexes"),
        (("ann", "--n", "many"), "--n 'many': give a positive whole number"),
        (("ann", "--search", "nprobe=4"), "is of no --factory"),
        (("ann", "--n", "100", "--dim", "8", "-k", "101"), "k=101: give a number from 1 to 100"),
        (("ann", "--vectors", "no.npy"), "no.npy does not exist"),
        (("ann", "--repeats", "1"), "repeats=1"),
        (("retrieval",), "Nothing to search: give --data FOLDER"),
        (("retrieval", "--data", "nowhere"), "There is no collection in nowhere"),
        (("retrieval", "--pairs", "demo", "--columns", "bm26"), "give some of bm25"),
        (("retrieval", "--task", "NoSuchTask"), "has no task NoSuchTask"),
        (("encode", "--budgets", "1,x"), "--budgets '1,x'"),
        (("report", "nowhere.jsonl"), "Cannot read nowhere.jsonl"),
        (("report", "one", "--compare"), "needs two"),
        (("ann", "--recommend", "--memory", "much"), "--memory 'much'"),
    ],
)
def test_errors_are_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = bench(*arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert result.output.count("\n") == 1, result.output


def test_an_interrupted_run_ends_its_child_and_keeps_its_rows(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "grace_retrieval",
        "bench",
        "ann",
        "--n",
        "60000",
        "--dim",
        "64",
        "--queries",
        "100",
    ]
    command += [
        "--factory",
        "Flat",
        "--factory",
        "HNSW64,Flat",
        "--out",
        str(tmp_path / "out"),
        "--work",
        str(tmp_path),
    ]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "benchmarks")])}
    file = tmp_path / "out" / "ann.jsonl"
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as child:
        deadline = time.monotonic() + 120
        while not file.exists() or not file.read_bytes().endswith(b"\n"):
            assert time.monotonic() < deadline, "no row"
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(child.pid, signal.SIGINT)
        errors = child.communicate(timeout=60)[1]
    assert child.returncode == 130
    assert "Traceback" not in errors
    assert [row["factory"] for row in read_rows(file)] == ["Flat"]
    workers = subprocess.run(
        ["pgrep", "-f", "grace_benchmarks.ann.worker"], capture_output=True, text=True, check=False
    )
    children = [pid for pid in workers.stdout.split() if _work(pid, tmp_path)]
    assert not children


def _work(pid: str, folder: Path) -> bool:
    """Whether a process has a file of a folder open."""
    try:
        return any(str(folder) in os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
