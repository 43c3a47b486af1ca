"""An experiment: recipes, each with several seeds, trained and evaluated one after the other; rows for a table.

Everything that is finished is left as it is, so a command that was killed goes on where it was when it is given again.
"""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from grace_benchmarks.record import Row, RowFile, row_key
from grace_retrieval.errors import InputError
from grace_training.evaluation.parts import UNTRAINED, Evaluator
from grace_training.evaluation.plan import Evaluation
from grace_training.recipe import Recipe
from grace_training.run import MODEL_FOLDER, RUN_FILE, run_recipe, torch_threads
from grace_training.table import ROWS_FILE

__all__ = ["Experiment"]


class Experiment:
    """Recipes, seeds, an evaluation, and the folder of their runs and rows.

    Args:
        recipes: Recipes of different names.
        seeds: Seeds of each; untrained recipes are run once, with seed 0.
        output: Folder: runs in `RECIPE-seedN`, rows in `rows.jsonl`.
        evaluation: What trained models are measured on; None only trains.
        say: Called with every new row.

    Raises:
        InputError: If two recipes have one name, or a seed is there twice.
    """

    def __init__(
        self,
        recipes: Sequence[Recipe],
        seeds: Sequence[int],
        output: str | Path,
        evaluation: Evaluation | None = None,
        *,
        say: Callable[[Row], None] = lambda row: None,
    ) -> None:
        names = [recipe.name for recipe in recipes]
        if not names or len(set(names)) < len(names):
            raise InputError(f"Recipes {', '.join(names) or '(none)'}: give one or more, of different names.")
        if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise InputError(f"Seeds {list(seeds)}: give different whole numbers, 0 or more.")
        self.runs = [
            (recipe, seed) for recipe in recipes for seed in ((0,) if recipe.method in UNTRAINED else tuple(seeds))
        ]
        self.output = Path(output)
        self.rows = RowFile(self.output / ROWS_FILE)
        self.failures = 0
        self._say = say
        self._evaluator = None if evaluation is None else Evaluator(evaluation)

    def run(self) -> bool:
        """Train and evaluate what is not there yet. A run that fails is recorded, and the others go on.

        Returns:
            False if SIGTERM stopped a training, with a checkpoint; the same experiment goes on from it.
        """
        for recipe, seed in self.runs:
            folder = self.output / f"{recipe.name}-seed{seed}"
            identity: Row = {"recipe": recipe.name, "method": recipe.method, "seed": seed}
            try:
                if not _train(recipe, seed, folder):
                    return False
            except Exception as error:  # whatever a trainer raises: the other runs go on
                self._failed({**identity, "kind": "run"}, error)
                continue
            self._evaluate(recipe, folder, {**identity, **_fingerprints(recipe, folder)})
            gc.collect()
        return True

    def _evaluate(self, recipe: Recipe, folder: Path, identity: Row) -> None:
        """Append the rows of a finished run that are not there yet."""
        record = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        costs = {name: record[name] for name in ("steps", "seconds", "cpu_seconds")}
        if steps := record["steps"]:
            costs |= {f"{name}_per_step": round(costs[name] / steps, 4) for name in ("seconds", "cpu_seconds")}
        self._measure({**identity, "kind": "run"}, lambda: costs)
        if self._evaluator is not None:
            with torch_threads(self._evaluator.evaluation.threads):
                for part, measure in self._evaluator.parts(recipe, folder / MODEL_FOLDER):
                    self._measure({**identity, **part}, measure)

    def _measure(self, identity: Row, measure: Callable[[], Row]) -> None:
        """Append a row unless it is there; one that cannot be measured says why, and is tried again next time."""
        key = row_key(identity)
        if key in self.rows:
            return
        started, cpu = time.perf_counter(), time.process_time()
        try:
            found = measure()
        except Exception as error:  # whatever a model raises: the other rows are measured
            self._failed(identity, error)
            return
        taken = {
            "evaluation_seconds": round(time.perf_counter() - started, 2),
            "evaluation_cpu_seconds": round(time.process_time() - cpu, 2),
        }
        self._say(self.rows.append({"key": key, **identity, "status": "ok", **found, **taken}))

    def _failed(self, identity: Row, error: Exception) -> None:
        self.failures += 1
        failed = {"status": "failed", "failed": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        # A key of its own: it must not count as measured.
        self._say(self.rows.append({"key": row_key({**identity, **failed, "time": time.time()}), **identity, **failed}))


def _train(recipe: Recipe, seed: int, folder: Path) -> bool:
    """Train, or go on, or find it done. Returns whether there is a result."""
    record, model = folder / RUN_FILE, folder / MODEL_FOLDER
    if record.is_file() and model.exists():
        _check_same(recipe, json.loads(record.read_text(encoding="utf-8"))["recipe"], folder)
        return True
    if model.exists():
        shutil.rmtree(model, ignore_errors=True)  # the record is written last: a kill came before it
    resume = folder.is_dir() and get_last_checkpoint(str(folder)) is not None
    return run_recipe(recipe, folder, seed=seed, resume=resume).exists()


def _check_same(recipe: Recipe, recorded: dict[str, Any], folder: Path) -> None:
    """Refuse a finished run of another recipe of the same name."""
    now = _plain(recipe)
    # A recipe that was run by an earlier version lacks what is new, which was the default then.
    unset = _plain(Recipe(name="", method="base"))
    then = {name: recorded.get(name, unset[name]) for name in now}
    different = [name for name in now if name != "description" and then[name] != now[name]]
    if different:
        name = different[0]
        raise InputError(
            f"{folder} holds a finished run of another recipe ({', '.join(different)}; {name}: {then[name]!r} then, "
            f"{now[name]!r} now). Give another --out, or remove the folder."
        )


def _plain(recipe: Recipe) -> dict[str, Any]:
    """A recipe as it is written to run.json."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(recipe), default=str))
    return found


def _fingerprints(recipe: Recipe, folder: Path) -> Row:
    """Digests of the recipe and of this very run: a run that is made again has new rows."""
    unset = _plain(Recipe(name="", method="base"))
    set_ = {k: v for k, v in _plain(recipe).items() if k != "description" and v != unset[k]}
    run = hashlib.blake2b((folder / RUN_FILE).read_bytes(), digest_size=8).hexdigest()
    return {"recipe_digest": row_key(set_), "run": run}
