r"""Rewards: how well a rationale retrieves. A term is a function of a RolloutBatch; the reward is their weighted sum.

A batch has B items with n rollouts each. `s` is the cosine, τ the temperature, q the query of an item, d⁺_i its
rollouts, d⁻ its negative. Preset "paper" is GRACE as published (arXiv 2510.04506, section 3.2):

    contrastive    [ s(q_b, d⁺_{b,i}) - s(q_b, d⁻_b) ] / τ
    consistency    mean over j ≠ i of s(d⁺_{b,i}, d⁺_{b,j}) / τ
    hard_negative  - mean over b' ≠ b of max_j s(q_b, d⁺_{b',j}) / τ

The second half of the first term and the whole third are equal for all rollouts of a group, so they cancel when the
group's mean is subtracted. Preset "grace" puts the negatives on the side of the rollout:

    contrastive    s(q_b, d⁺_{b,i}) / τ
    hard_negative  - log Σ exp(s(d⁺_{b,i}, x) / τ) over x = every query of the batch and d⁻_b

so that their sum is the log-probability of picking q_b by d⁺_{b,i}: InfoNCE (van den Oord et al., arXiv 1807.03748)
as a reward. The sum runs over q_b too; without it the two would be log-odds, which go on rewarding what is already told
apart.

Unsupervised, a text is its own query and has no negative; in "paper" the third term is then on the rollout's side
already: - mean over b' ≠ b of s(d⁺_{b,i}, q_{b'}) / τ.

Terms of your own stand beside these: `GraceTrainer(..., reward_terms={"brevity": (brevity, 0.1)})`, with

    def brevity(batch: RolloutBatch) -> Tensor:
        return -batch.lengths.float()
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from grace_retrieval.errors import InputError
from grace_training.batch import Mode, Preset, RewardTerm, RolloutBatch

__all__ = [
    "TERMS",
    "Mode",
    "Preset",
    "RewardTerm",
    "Rewards",
    "composite_reward",
    "consistency",
    "contrastive",
    "find_term",
    "hard_negative",
    "reward_batch",
    "weighted_terms",
]

HARD_NEGATIVE_WEIGHT: dict[str, float] = {"paper": 0.2, "grace": 1.0}
"""Weights if none is given. With 1, "grace" is exactly InfoNCE."""


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """Rewards of a batch, and the terms they are made of. Each has shape (B, n), float32.

    Attributes:
        total: The sum of the terms, each times its weight.
        terms: Terms by name, without their weights.
    """

    total: Tensor
    terms: Mapping[str, Tensor]

    @property
    def contrastive(self) -> Tensor:
        """How near a rollout is to its query."""
        return self.terms["contrastive"]

    @property
    def consistency(self) -> Tensor:
        """How near the rollouts of a group are to each other; 0 if there is one only."""
        return self.terms["consistency"]

    @property
    def hard_negative(self) -> Tensor:
        """How far it is from what it should not match; 0 if there is nothing of the kind."""
        return self.terms["hard_negative"]


def contrastive(batch: RolloutBatch) -> Tensor:
    """Nearness of rollouts to their query, in "paper" less that of the query to its negative. Shape: (B, n)."""
    query, negatives = batch.unit_others, batch.unit_negatives
    near = torch.einsum("bd,bnd->bn", query, batch.unit_rollouts) / batch.temperature
    if batch.preset == "paper" and negatives is not None:
        near = near - (query * negatives).sum(-1, keepdim=True) / batch.temperature
    return near


def consistency(batch: RolloutBatch) -> Tensor:
    """Mean nearness of a rollout to the others of its group; 0 if it has no others. Shape: (B, n)."""
    rollouts, n = batch.unit_rollouts, batch.shape[1]
    if n == 1:
        return rollouts.new_zeros(batch.shape)
    near = torch.einsum("bid,bjd->bij", rollouts, rollouts)
    others = near.sum(-1) - near.diagonal(dim1=1, dim2=2)
    return others / (n - 1) / batch.temperature


def hard_negative(batch: RolloutBatch) -> Tensor:
    """Distance from what must not match, see the module for the formulas; 0 for a text that has nothing of the kind.

    Shape: (B, n).
    """
    query, rollouts, negatives, allowed = batch.unit_others, batch.unit_rollouts, batch.unit_negatives, batch.rivals
    size, n = batch.shape
    if batch.preset == "grace":
        near = torch.einsum("bnd,cd->bnc", rollouts, query)  # to every query of the batch
        kept = allowed | torch.eye(size, dtype=torch.bool, device=allowed.device)
        near = near.masked_fill(~kept[:, None], -torch.inf)
        alone = ~allowed.any(1)
        if negatives is not None:
            near = torch.cat([near, torch.einsum("bnd,bd->bn", rollouts, negatives)[..., None]], -1)
            alone = torch.zeros_like(alone)
        far = -torch.logsumexp(near / batch.temperature, -1)
        # Alone in its batch, an item has nothing to be told from, and the term says so.
        return far.masked_fill(alone[:, None], 0.0)
    if batch.mode == "supervised":
        near = torch.einsum("bd,cjd->bcj", query, rollouts).amax(-1)[:, None].expand(-1, n, -1)  # (B, n, B)
    else:
        near = torch.einsum("bnd,cd->bnc", rollouts, query)
    others = allowed.sum(1).clamp(min=1)[:, None]
    return -near.masked_fill(~allowed[:, None], 0.0).sum(-1) / others / batch.temperature


TERMS: dict[str, RewardTerm] = {
    "contrastive": contrastive,
    "consistency": consistency,
    "hard_negative": hard_negative,
}
"""The terms of the reward as published, and of ours."""


def weighted_terms(
    preset: Preset,
    *,
    contrastive_weight: float = 1.0,
    consistency_weight: float = 0.2,
    hard_negative_weight: float | None = None,
    others: Mapping[str, Any] | None = None,
) -> dict[str, tuple[RewardTerm, float]]:
    """Terms with their weights, ours first.

    Args:
        preset: "paper" or "grace".
        contrastive_weight: Weight of the first term; 0 leaves the others alone, to see what they do.
        consistency_weight: λ₁.
        hard_negative_weight: λ₂; None is 0.2 for "paper" and 1 for "grace", where the reward is then InfoNCE.
        others: Terms of the user, alone (with weight 1) or with a weight.

    Raises:
        InputError: If one has the name of ours, is no function, or its weight is no finite number.
    """
    hard = HARD_NEGATIVE_WEIGHT[preset] if hard_negative_weight is None else hard_negative_weight
    weights = (contrastive_weight, consistency_weight, hard)
    found = {name: (term, weight) for (name, term), weight in zip(TERMS.items(), weights, strict=True)}
    for name, entry in (others or {}).items():
        term, weight = entry if isinstance(entry, tuple) else (entry, 1.0)
        if name in TERMS:
            raise InputError(
                f"reward_terms has {name!r}, which is one of ours ({', '.join(TERMS)}): give yours another name. "
                f"{name}_weight weights ours."
            )
        if not callable(term):
            raise InputError(f"reward_terms[{name!r}] is {term!r}: give a function of a RolloutBatch.")
        if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight):
            raise InputError(f"reward_terms[{name!r}] has the weight {weight!r}: give a number.")
        found[name] = (term, float(weight))
    return found


def reward_batch(batch: RolloutBatch, terms: Mapping[str, tuple[RewardTerm, float]]) -> Rewards:
    """The reward of every rollout of a batch, without the length penalty (see `grace_training.advantages`).

    Args:
        batch: The batch.
        terms: Terms and weights, from `weighted_terms`.

    Raises:
        InputError: If a term gives no tensor of shape (B, n).
    """
    found = {name: _value(name, term, batch) for name, (term, _) in terms.items()}
    weighted = [weight * found[name] for name, (_, weight) in terms.items()]
    total = weighted[0]
    for part in weighted[1:]:
        total = total + part
    return Rewards(total=total, terms=found)


def _value(name: str, term: RewardTerm, batch: RolloutBatch) -> Tensor:
    value: object = term(batch)
    if not isinstance(value, Tensor) or tuple(value.shape) != batch.shape:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"The reward term {name!r} gave {got}: give a tensor of shape {batch.shape}, one a rollout.")
    return value.to(batch.others.device, torch.float32)


def find_term(reference: str) -> RewardTerm:
    """Import a term that a recipe names.

    Args:
        reference: "module:function". The folder one works in is looked through first, as by `python -m`.

    Raises:
        InputError: If there is no such module or function.
    """
    module, colon, function = str(reference).partition(":")
    if not (module and colon and function):
        raise InputError(f"function={reference!r}: give 'module:function', such as 'my_rewards:brevity'.")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"function={reference!r} cannot be imported: {error}.") from error
    if not callable(term := getattr(found, function, None)):
        functions = sorted(name for name in vars(found) if callable(vars(found)[name]) and not name.startswith("_"))
        raise InputError(f"{module} has no function {function!r}: it has {', '.join(functions) or 'none'}.")
    checked: RewardTerm = term
    return checked


def composite_reward(
    query: Tensor,
    rollouts: Tensor,
    negatives: Tensor | None,
    *,
    preset: Preset = "grace",
    mode: Mode = "supervised",
    temperature: float = 0.1,
    consistency_weight: float = 0.2,
    hard_negative_weight: float | None = None,
    contrastive_weight: float = 1.0,
    same_item: Tensor | None = None,
) -> Rewards:
    """Reward of every rollout by our terms alone, from vectors: `reward_batch` for those who have no batch.

    Vectors need not have length 1; they are normalised here.

    Args:
        query: Pooled vectors of queries; unsupervised, of the texts themselves. Shape: (B, d).
        rollouts: Pooled vectors of the documents with their rollouts. Shape: (B, n, d).
        negatives: Pooled vectors of given negatives, or None. Shape: (B, d).
        preset: "paper" or "grace".
        mode: "supervised" or "unsupervised".
        temperature: τ, by which all similarities are divided.
        consistency_weight: λ₁.
        hard_negative_weight: λ₂; None is 0.2 for "paper" and 1 for "grace", where the reward is then InfoNCE.
        contrastive_weight: Weight of the first term; 0 leaves the others alone, to see what they do.
        same_item: Which items say the same (a repeated query or document) and so are no negatives of each other. Shape:
            (B, B), bool. None: every item differs from every other.

    Returns:
        Rewards of shape (B, n), float32.

    Raises:
        InputError: If shapes do not fit, an option is unknown, or the temperature is not positive.

    Example:
        >>> query, rollouts = torch.eye(2), torch.eye(2)[:, None]
        >>> composite_reward(query, rollouts, None, preset="paper", temperature=0.5).contrastive
        tensor([[2.],
                [2.]])
    """
    batch = RolloutBatch(
        rollouts=rollouts,
        others=query,
        negatives=negatives,
        same_item=same_item,
        preset=preset,
        mode=mode,
        temperature=temperature,
    )
    terms = weighted_terms(
        preset,
        contrastive_weight=contrastive_weight,
        consistency_weight=consistency_weight,
        hard_negative_weight=hard_negative_weight,
    )
    return reward_batch(batch, terms)
