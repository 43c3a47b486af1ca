"""Rewards equal those of an independent implementation, and say what the formulas say."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import grace_training.rewards
from grace_retrieval import InputError
from grace_training.advantages import group_advantages, penalise_truncated, variance_within_groups
from grace_training.rewards import composite_reward

CASES = json.loads((Path(__file__).parents[1] / "fixtures" / "reward_cases.json").read_text(encoding="utf-8"))


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", CASES, ids=[f"{case['mode']}-{case['seed']}" for case in CASES])
def test_paper_equals_the_independent_implementation(case: dict[str, Any]) -> None:
    negatives = None if case["negative"] is None else torch.tensor(case["negative"])
    rewards = composite_reward(
        torch.tensor(case["query"]),
        torch.tensor(case["rollout"]),
        negatives,
        preset="paper",
        mode=case["mode"],
        temperature=case["temperature"],
        consistency_weight=case["consistency_weight"],
        hard_negative_weight=case["hard_weight"],
    )
    expected = {name: torch.tensor(value) for name, value in case["expected"].items() if value is not None}
    contrastive = expected["positive"] + expected.get("negative", 0.0)
    for found, wanted in (
        (rewards.total, expected["total"]),
        (rewards.contrastive, contrastive),
        (rewards.consistency, expected["consistency"]),
        # Unsupervised, the file has the third term before its minus sign.
        (rewards.hard_negative, expected["hard"] if case["mode"] == "supervised" else -expected["hard"]),
    ):
        # The file's vectors are rounded to six decimals, which at τ = 0.1 moves a reward by up to 1.1e-5.
        torch.testing.assert_close(found, wanted, atol=1.5e-5, rtol=0)


def test_grace_is_the_log_probability_of_picking_the_query() -> None:
    """Against cross entropy over the batch's queries and the item's own negative."""
    query, rollouts, negatives = vectors(5, 16), vectors(5, 3, 16, seed=1), vectors(5, 16, seed=2)
    rewards = composite_reward(query, rollouts, negatives, preset="grace", temperature=0.2)
    cosine = torch.nn.functional.cosine_similarity
    for b in range(5):
        for i in range(3):
            candidates = torch.cat([query, negatives[b : b + 1]])
            logits = cosine(rollouts[b, i][None], candidates) / 0.2
            loss = torch.nn.functional.cross_entropy(logits[None], torch.tensor([b]))
            torch.testing.assert_close((rewards.contrastive + rewards.hard_negative)[b, i], -loss, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        rewards.total, rewards.contrastive + 0.2 * rewards.consistency + 1.0 * rewards.hard_negative
    )


def test_the_negatives_of_the_paper_cancel_within_a_group_and_ours_do_not() -> None:
    query, rollouts, negatives = vectors(6, 16), vectors(6, 8, 16, seed=1), vectors(6, 16, seed=2)
    paper = composite_reward(query, rollouts, negatives, preset="paper")
    grace = composite_reward(query, rollouts, negatives, preset="grace")
    assert float(variance_within_groups(paper.hard_negative)) == 0.0
    assert float(variance_within_groups(grace.hard_negative)) > 1e-3
    attraction = composite_reward(query, rollouts, None, preset="paper", hard_negative_weight=0.0)
    torch.testing.assert_close(group_advantages(paper.total), group_advantages(attraction.total), atol=1e-5, rtol=0)


@pytest.mark.parametrize("preset", ["paper", "grace"])
def test_the_total_is_the_weighted_sum_of_the_terms(preset: Any) -> None:
    weights = {"contrastive": 0.0, "consistency": 0.5, "hard_negative": 3.0}
    found = composite_reward(
        vectors(4, 16),
        vectors(4, 3, 16, seed=1),
        None,
        preset=preset,
        **{f"{name}_weight": weight for name, weight in weights.items()},
    )
    expected = 0.5 * found.consistency + 3 * found.hard_negative
    torch.testing.assert_close(found.total, expected)


@pytest.mark.parametrize("preset", ["paper", "grace"])
def test_items_that_say_the_same_are_no_negatives_of_each_other(preset: Any) -> None:
    query, rollouts = vectors(4, 16), vectors(4, 3, 16, seed=1)
    query[3], rollouts[3] = query[0], rollouts[0]
    same = torch.eye(4, dtype=torch.bool)
    same[0, 3] = same[3, 0] = True
    with_repeat = composite_reward(query, rollouts, None, preset=preset, same_item=same)
    without = composite_reward(query[:3], rollouts[:3], None, preset=preset)
    torch.testing.assert_close(with_repeat.total[0], without.total[0], atol=1e-5, rtol=0)
    counted = composite_reward(query, rollouts, None, preset=preset)
    assert not torch.allclose(counted.total[0], without.total[0], atol=1e-3)


@pytest.mark.parametrize("preset", ["paper", "grace"])
@pytest.mark.parametrize("mode", ["supervised", "unsupervised"])
def test_one_item_has_no_negatives_in_its_batch_and_one_rollout_no_company(preset: Any, mode: Any) -> None:
    alone = composite_reward(vectors(1, 8), vectors(1, 4, 8, seed=1), None, preset=preset, mode=mode)
    assert alone.hard_negative.abs().max() == 0
    single = composite_reward(vectors(3, 8), vectors(3, 1, 8, seed=1), None, preset=preset, mode=mode)
    assert single.consistency.abs().max() == 0 and single.hard_negative.abs().min() > 0


def test_the_length_of_vectors_does_not_matter_and_gradients_flow() -> None:
    query, rollouts = vectors(3, 8), vectors(3, 2, 8, seed=1).requires_grad_()
    scaled = composite_reward(query * 7, rollouts * 0.1, None)
    rewards = composite_reward(query, rollouts, None)
    torch.testing.assert_close(scaled.total, rewards.total)
    (gradient,) = torch.autograd.grad(rewards.total.sum(), rollouts)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "ours"}, "preset='ours': give 'paper' or 'grace'"),
        ({"mode": "half"}, "mode='half'"),
        ({"temperature": 0.0}, "temperature=0.0: give a positive number"),
        ({"query": vectors(3, 8)}, r"query is \(3, 8\) and rollouts \(2, 4, 8\)"),
        ({"rollouts": vectors(2, 8)}, r"rollouts \(2, 8\)"),
        ({"rollouts": vectors(2, 0, 8)}, "n of 1 or more"),
        ({"negatives": vectors(2, 4, 8)}, r"negatives is \(2, 4, 8\)"),
        ({"mode": "unsupervised", "negatives": vectors(2, 8)}, "an unsupervised text has none"),
        ({"same_item": torch.zeros(2, 2)}, r"same_item is \(2, 2\) of torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"query": vectors(2, 8), "rollouts": vectors(2, 4, 8), "negatives": None, **change}
    query, rollouts, negatives = (arguments.pop(name) for name in ("query", "rollouts", "negatives"))
    with pytest.raises(InputError, match=message):
        composite_reward(query, rollouts, negatives, **arguments)


class TestLengthPenalty:
    rewards = torch.tensor([[-3.5, -2.0, 1.0], [2.0, 3.0, 4.0]])
    truncated = torch.tensor([[False, True, False], [True, True, True]])

    def test_of_the_paper_can_be_a_bonus(self) -> None:
        penalised = penalise_truncated(self.rewards, self.truncated, preset="paper")
        assert penalised.tolist() == [[-3.5, -1.0, 1.0], [-1.0, -1.0, -1.0]]
        assert penalised[0, 1] > penalised[0, 0]

    def test_of_grace_is_below_the_lowest_of_the_group(self) -> None:
        penalised = penalise_truncated(self.rewards, self.truncated, preset="grace", margin=0.5)
        assert penalised.tolist() == [[-3.5, -4.0, 1.0], [1.5, 1.5, 1.5]]
        assert group_advantages(penalised)[1].tolist() == [0.0, 0.0, 0.0]

    def test_it_is_never_negative_and_shapes_fit(self) -> None:
        with pytest.raises(InputError, match="margin=-1"):
            penalise_truncated(self.rewards, self.truncated, preset="grace", margin=-1.0)
        with pytest.raises(InputError, match="one shape"):
            penalise_truncated(self.rewards, self.truncated[:1], preset="grace")


def test_the_example_in_the_documentation_is_right() -> None:
    found = doctest.testmod(grace_training.rewards)
    assert found.attempted > 0 and found.failed == 0
