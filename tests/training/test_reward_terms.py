"""Reward terms of the user: by argument and by recipe, in real trainings; what is no term is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from torch import Tensor

from grace_retrieval import EngineError, InputError

pytest.importorskip("trl", reason="trl needs Python 3.11: pip install 'grace-retrieval[train]'")

from grace_training.batch import RolloutBatch
from grace_training.recipe import load_recipe
from grace_training.rewards import TERMS, composite_reward, find_term, weighted_terms
from grace_training.run import run_recipe

if TYPE_CHECKING:
    from datasets import Dataset

    from grace_training.trainer import GraceTrainer

MakeTrainer = Callable[..., "GraceTrainer"]


def brevity(batch: RolloutBatch) -> Tensor:
    assert batch.lengths is not None
    return -batch.lengths.float()


def test_a_batch_has_what_a_term_may_ask_for(make_trainer: MakeTrainer) -> None:
    seen: list[RolloutBatch] = []

    def look(batch: RolloutBatch) -> Tensor:
        seen.append(batch)
        return torch.zeros(batch.shape)

    trainer = make_trainer(arguments={"reward_terms": {"look": look}})
    trainer.train()
    batch, rows = seen[-1], trainer.batch.rows
    rollouts = trainer.batch.rollouts
    assert batch.shape == (8, 4)
    assert batch.texts == tuple(row["prompt"] for row in rows[::4])
    assert batch.other_texts == tuple(row["other"] for row in rows[::4])
    assert batch.lengths is not None and batch.truncated is not None
    assert batch.lengths.flatten().tolist() == [len(rollout.rationale_ids) for rollout in rollouts]
    assert batch.truncated.flatten().tolist() == [rollout.truncated for rollout in rollouts]
    decode = trainer.embedder.pipeline.decode
    assert [text for group in batch.rationales for text in group] == [decode(r.rationale_ids) for r in rollouts]
    assert [len(group) for group in batch.rationales] == [4] * 8


def test_it_is_added_with_its_weight_and_logged(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(
        arguments={"reward_terms": {"brevity": (brevity, 0.5)}}, preset="paper", truncation_margin=0.0, logging_steps=1
    )
    trainer.train()
    batch = trainer.batch.gathered
    assert batch is not None and batch.truncated is not None and trainer.batch.rewards is not None
    ours = composite_reward(
        batch.others, batch.rollouts, batch.negatives, preset="paper", same_item=batch.same_item
    ).total
    expected = (ours + 0.5 * brevity(batch)).masked_fill(batch.truncated, -1.0)
    torch.testing.assert_close(trainer.batch.rewards, expected)
    logged = [entry for entry in trainer.state.log_history if "reward_terms/brevity" in entry]
    assert logged and all("variance_within_groups/brevity" in entry for entry in logged)
    assert logged[-1]["reward_terms/brevity"] == pytest.approx(float(brevity(batch).mean()))


@pytest.mark.filterwarnings("ignore::grace_training.trainer.ConstantRewardWarning")
def test_a_recipe_names_one_and_a_checkpoint_remembers_it(
    tmp_path: Path, pairs: Dataset, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_rewards.py").write_text(
        "def brevity(batch):\n    return -batch.lengths.float()\n\n\ndef flat(batch):\n    return batch.lengths[0]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    pairs.to_json(tmp_path / "pairs.jsonl")
    content: dict[str, Any] = {
        "method": "grace",
        "model": str(tiny_policy),
        "embedder": {"max_new_tokens": 4, "device": "cpu"},
        "data": [{"path": "pairs.jsonl"}],
        "reward_terms": {"brevity": {"function": "own_rewards:brevity", "weight": 0.25}},
        "training": {
            "max_steps": 1, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_generations": 4,
            "use_cpu": True, "bf16": False, "logging_steps": 1, "save_strategy": "steps", "save_steps": 1,
        },
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    run_recipe(load_recipe("recipe.yaml"), tmp_path / "out")
    (settings,) = (tmp_path / "out").rglob("checkpoint-1/grace_training.json")
    assert json.loads(settings.read_text())["reward_terms"] == {"brevity": 0.25}
    (state,) = (tmp_path / "out").rglob("checkpoint-1/trainer_state.json")
    assert "reward_terms/brevity" in json.loads(state.read_text())["log_history"][0]
    with pytest.raises(InputError, match=r"gave a tensor of shape \(4,\): give a tensor of shape \(2, 4\)"):
        run_recipe(load_recipe("recipe.yaml", ["reward_terms.brevity.function=own_rewards:flat"]), tmp_path / "b")
    with pytest.raises(InputError, match="no function 'brevty': it has brevity, flat"):
        run_recipe(load_recipe("recipe.yaml", ["reward_terms.brevity.function=own_rewards:brevty"]), tmp_path / "c")


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), r"not finite \(broken\)"), (float("-inf"), r"not finite \(broken\)")]
)
def test_what_is_not_finite_stops_the_run_and_names_the_term(
    make_trainer: MakeTrainer, value: float, message: str
) -> None:
    trainer = make_trainer(arguments={"reward_terms": {"broken": lambda batch: torch.full(batch.shape, value)}})
    with pytest.raises(EngineError, match=message):
        trainer.train()


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"contrastive": brevity}, "one of ours .contrastive, consistency, hard_negative."),
        ({"brevity": "own_rewards:brevity"}, "give a function of a RolloutBatch"),
        ({"brevity": (brevity, "much")}, "has the weight 'much': give a number"),
        ({"brevity": (brevity, float("inf"))}, "give a number"),
        ({"brevity": (brevity, True)}, "give a number"),
    ],
)
def test_what_is_no_term_is_refused(terms: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        weighted_terms("grace", others=terms)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("brevity", "give 'module:function'"),
        ("no_such_module:brevity", "cannot be imported"),
        ("json:no_such", "json has no function 'no_such': it has"),
        (None, "give 'module:function'"),
    ],
)
def test_a_reference_to_nothing_is_refused(reference: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_term(reference)
    assert find_term("grace_training.rewards:contrastive") is TERMS["contrastive"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"reward_terms": ["a"]}, "give a mapping from names to functions"),
        ({"reward_terms": {"a": {"weight": 1}}}, "reward_terms.a=.*give 'module:function'"),
        ({"reward_terms": {"a": "m:f"}, "method": "contrastive"}, "for the methods paper and grace"),
    ],
)
def test_recipes_with_bad_terms_are_refused(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({"method": "grace", "data": [{"path": "x.jsonl"}], **content}))
    with pytest.raises(InputError, match=message):
        load_recipe(path)
