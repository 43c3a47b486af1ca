"""A budget of CPU seconds ends both trainers, counts training alone, and is remembered by checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl", reason="trl needs Python 3.11: pip install 'grace-retrieval[train]'")

from grace_retrieval import InputError
from grace_training.budget import Budget
from grace_training.recipe import load_recipe
from grace_training.run import run_recipe


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


@pytest.mark.parametrize("method", ["contrastive", "grace"])
def test_a_budget_ends_the_training_after_the_step_that_exceeds_it(
    recipe_file: Callable[..., Path], tmp_path: Path, method: str
) -> None:
    recipe = load_recipe(recipe_file(method, max_steps=500, logging_steps=1), ["budget_seconds=0.001", "threads=1"])
    model = run_recipe(recipe, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert model.is_dir()
    assert record["steps"] == 1 and record["log"][-1]["step"] == 1
    assert 0 < record["cpu_seconds"]
    assert 0 < record["seconds"]


def test_the_seconds_of_earlier_processes_count_and_those_of_other_callbacks_do_not(
    make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    from transformers import TrainerCallback

    class Slow(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            burn(1)

    first = Budget()
    trainer = make_trainer(max_steps=1, save_strategy="steps", save_steps=1)
    trainer.add_callback(Slow())
    trainer.add_callback(first)
    before = time.process_time()
    trainer.train()
    assert 0 < first.cpu_seconds < time.process_time() - before - 1

    state = json.loads((tmp_path / "run" / "checkpoint-1" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["stateful_callbacks"]["Budget"]["attributes"]["cpu_seconds"] == first.cpu_seconds

    again = make_trainer(max_steps=500, save_strategy="steps", save_steps=500)
    # The step that follows cannot take as little as a millionth of a second.
    second = Budget(first.cpu_seconds + 1e-6)
    again.add_callback(second)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 2
    assert second.cpu_seconds > first.cpu_seconds and second.seconds > first.seconds


def test_a_checkpoint_without_a_budget_can_be_gone_on_from_with_one(make_trainer: Callable[..., Any]) -> None:
    make_trainer(max_steps=1, save_strategy="steps", save_steps=1).train()
    again = make_trainer(max_steps=500, save_strategy="steps", save_steps=1)
    again.add_callback(Budget(1e-6))
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 2


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_a_budget_is_positive(seconds: float) -> None:
    with pytest.raises(InputError, match="give a positive number"):
        Budget(seconds)
