"""`grace train` with several recipes and seeds: rows, a table, nothing done twice, and failures that stop nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from grace_retrieval.cli.plugins import plugin_names

pytest.importorskip("trl", reason="trl needs Python 3.11: pip install 'grace-retrieval[train]'")
pytest.importorskip("ir_measures", reason="pip install 'grace-retrieval[bench]'")

from grace_benchmarks.record import read_rows
from grace_retrieval import InputError
from grace_training.experiment import Experiment
from grace_training.recipe import load_recipe
from grace_training.table import make_table, read_experiments

if "train" not in plugin_names():
    pytest.skip("install the package again (pip install -e .): it has a new entry point", allow_module_level=True)

ROOT = Path(__file__).parents[2]


def grace(*arguments: object) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(str(ROOT / folder) for folder in (".", "training", "benchmarks"))
    return subprocess.run(
        [sys.executable, "-m", "grace_retrieval", "train", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


@pytest.fixture
def evaluation_file(tmp_path: Path) -> Path:
    """An evaluation of one collection of four documents, on a copy of which health is measured."""
    folder = tmp_path / "small"
    (folder / "qrels").mkdir(parents=True)
    texts = {"d1": "tides follow the moon", "d2": "bread needs yeast", "d3": "honey keeps", "d4": "iron rusts"}
    queries = {"q1": "why are there tides", "q2": "what does bread need"}
    for name, content in (("corpus", texts), ("queries", queries)):
        lines = [json.dumps({"_id": key, "title": "", "text": text}) + "\n" for key, text in content.items()]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t1\n", encoding="utf-8")
    held_out = [json.dumps({"title": f"on {text}", "abstract": f"{text}, always"}) + "\n" for text in texts.values()]
    (tmp_path / "held-out.jsonl").write_text("".join(held_out), encoding="utf-8")
    content = {
        "data_folder": str(tmp_path),
        "max_new_tokens": 8,
        "sets": [{"kind": "retrieval", "name": "small", "path": "small", "documents": 3}],
        "held_out": {"path": "held-out.jsonl", "texts": 4},
    }
    path = tmp_path / "evaluation.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_recipes_are_listed_and_mistakes_are_named(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    listed = grace("--list-recipes")
    assert listed.returncode == 0 and "nano-grace" in listed.stdout
    for arguments, message in (
        (("nothing", "nano-base"), "There is no recipe 'nothing'"),
        (("nano-base", "--seeds", "1,x"), "--seeds '1,x': give whole numbers"),
        (("nano-base", "--seeds", 1, "--against", "nano-bass"), "--against nano-bass: give names of recipes"),
    ):
        result = grace(*arguments, "--out", tmp_path / "out")
        assert result.returncode == 1 and message in result.stderr
    assert not (tmp_path / "out").exists()


def test_two_recipes_are_trained_evaluated_and_put_into_a_table_once(
    recipe_file: Callable[..., Path], evaluation_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = (recipe_file("grace"), recipe_file("contrastive"), "--seeds", 7, "--evaluate", evaluation_file)
    command += ("--out", out, "--against", "contrastive")
    first = grace(*command)
    assert first.returncode == 0, first.stderr[-3000:]
    rows = read_rows(out / "rows.jsonl")
    for method in ("grace", "contrastive"):
        record = json.loads((out / f"{method}-seed7" / "run.json").read_text(encoding="utf-8"))
        assert record["steps"] == 2 and record["cpu_seconds"] >= 0 and record["log"][-1]["step"] == 2
        found = [(row["kind"], row.get("column")) for row in rows if row["recipe"] == method]
        assert found == [
            ("run", None),
            ("set", "text"),
            ("health", "text"),
            ("set", "rationale"),
            ("health", "rationale"),
            ("perplexity", None),
        ]
    (row,) = (r for r in rows if (r["recipe"], r["kind"], r.get("column")) == ("grace", "set", "rationale"))
    assert row["status"] == "ok" and row["data"]["documents"] == 3 and row["per_query"]["query"] == ["q1", "q2"]
    table = (out / "table.md").read_text(encoding="utf-8")
    assert first.stdout == table
    assert (
        f"| grace | rationale | 1 | **{row['value']:.3f}**" in table
        or f"| grace | rationale | 1 | {row['value']:.3f}" in table
    )
    for part in ("## Health", "## Cost of training", "## Paired permutation tests", "small 2 queries, 3 documents"):
        assert part in table

    # One row lost, as by a kill before it: it alone is measured again, the same, and nothing is trained twice.
    models = {path: path.stat().st_mtime_ns for path in out.glob("*/model/*")}
    lines = (out / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = lines[:-5] + lines[-4:]
    (out / "rows.jsonl").write_text("".join(kept[:-1]) + kept[-1][:40], encoding="utf-8")
    (out / "table.md").unlink()
    second = grace(*command)
    assert second.returncode == 0, second.stderr[-3000:]
    assert second.stdout == table == (out / "table.md").read_text(encoding="utf-8")
    assert read_rows(out / "rows.jsonl")[: len(kept) - 1] == [json.loads(line) for line in kept[:-1]]
    assert len(read_rows(out / "rows.jsonl")) == len(rows)
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/model/*")} == models


@pytest.fixture
def rows_file(tmp_path: Path) -> Callable[..., Path]:
    """`rows_file(folder, row, ...)`: a folder with these rows of one set."""

    def write(folder: str, *rows: dict[str, Any]) -> Path:
        path = tmp_path / folder
        path.mkdir()
        whole = [
            {
                "kind": "set",
                "status": "ok",
                "recipe_digest": row["recipe"],
                "run": f"{row['recipe']}{row['seed']}",
                "column": "text",
                "max_new_tokens": None,
                "set": {"name": "s"},
                "measure": "nDCG@10",
                "data": {"digest": "x", "queries": 2},
                "value": sum(row["values"]) / 2,
                "per_query": {"nDCG@10": row["values"]},
                **row,
            }
            for row in rows
        ]
        runs = [
            {
                **{k: row[k] for k in ("recipe", "seed", "recipe_digest", "run")},
                "kind": "run",
                "status": "ok",
                "steps": 0,
            }
            for row in whole
        ]
        (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in runs + whole), encoding="utf-8")
        return path

    return write


def test_a_table_has_means_spreads_and_the_best_in_bold(rows_file: Callable[..., Path]) -> None:
    one = rows_file("one", *({"recipe": "a", "seed": s, "values": [v, v]} for s, v in ((1, 0.2), (2, 0.4))))
    two = rows_file(
        "two", {"recipe": "a", "seed": 3, "values": [0.6, 0.6]}, {"recipe": "b", "seed": 1, "values": [0.3, 0.1]}
    )
    text = make_table(read_experiments([one, two]), against=["b"])
    # statistics by hand: mean .4, deviation of .2, .4, .6 is .2
    assert "| a | text | 3 | **0.400 ± 0.200** |" in text
    assert "| b | text | 1 | 0.200 |" in text
    # Two queries, the differences .1 and .3: of four flips of signs two are as extreme.
    assert "| a | text | b | text | +0.200 (p 0.5) |" in text
    with pytest.raises(InputError, match="no rows of c"):
        make_table(read_experiments([one]), against=["c"])


def test_figures_of_other_samples_and_of_models_that_were_trained_again_are_not_mixed(
    rows_file: Callable[..., Path],
) -> None:
    one = rows_file("one", {"recipe": "a", "seed": 1, "values": [0, 0]})
    other = {"recipe": "b", "seed": 1, "values": [1, 1], "data": {"digest": "y", "queries": 2}}
    with pytest.raises(InputError, match="measured on different samples"):
        read_experiments([one, rows_file("two", other)])
    with open(one / "rows.jsonl", "a", encoding="utf-8") as file:
        again = {
            "kind": "run",
            "recipe": "a",
            "recipe_digest": "a",
            "seed": 1,
            "run": "new",
            "status": "ok",
            "steps": 0,
        }
        file.write(json.dumps(again) + "\n")
    assert [row["kind"] for row in read_experiments([one])] == ["run"]


def test_a_run_that_fails_is_recorded_and_the_others_go_on(
    recipe_file: Callable[..., Path], evaluation_file: Path, tmp_path: Path
) -> None:
    bad = load_recipe(recipe_file("contrastive"), ["name=bad", f"model={tmp_path / 'nothing'}"])
    base = load_recipe(recipe_file("base"))
    said: list[dict[str, Any]] = []
    experiment = Experiment([bad, base], [3, 4], tmp_path / "out", say=said.append)
    assert experiment.run() and experiment.failures == 2
    assert [(row["recipe"], row["seed"], row["status"]) for row in said] == [
        ("bad", 3, "failed"),
        ("bad", 4, "failed"),
        ("base", 0, "ok"),
    ]
    table = make_table(read_experiments([tmp_path / "out"]))
    assert "- bad, seed 3, training: ModelLoadError" in table
    # Mended, it is tried again, and the failures are no longer in the table.
    good = load_recipe(recipe_file("contrastive"), ["name=bad"])
    again = Experiment([good, base], [3, 4], tmp_path / "out", say=said.append)
    assert again.run() and again.failures == 0
    assert "Failed" not in make_table(read_experiments([tmp_path / "out"]))


def test_a_finished_run_of_another_recipe_is_refused(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    said: list[dict[str, Any]] = []
    for override, failures in (
        ("temperature=0.1", 0),
        ("description=other words", 0),
        ("embedder.max_new_tokens=4", 1),
    ):
        recipe = load_recipe(recipe_file("base"), [override])
        experiment = Experiment([recipe], [1], tmp_path / "out", say=said.append)
        experiment.run()
        assert experiment.failures == failures
    assert "finished run of another recipe (embedder" in said[-1]["failed"]


def test_names_and_seeds_are_different(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file("base"))
    with pytest.raises(InputError, match="of different names"):
        Experiment([recipe, recipe], [1], tmp_path)
    for seeds in ([], [1, 1], [-1]):
        with pytest.raises(InputError, match="give different whole numbers"):
            Experiment([recipe], seeds, tmp_path)
