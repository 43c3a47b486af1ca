r"""Rewards: how well a rationale retrieves, as pure functions of pooled vectors.

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
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from grace_retrieval.errors import InputError

__all__ = ["Mode", "Preset", "Rewards", "composite_reward", "consistency", "contrastive", "hard_negative"]

Preset = Literal["paper", "grace"]
Mode = Literal["supervised", "unsupervised"]

HARD_NEGATIVE_WEIGHT: dict[str, float] = {"paper": 0.2, "grace": 1.0}
"""Weights if none is given. With 1, "grace" is exactly InfoNCE."""


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """Rewards of a batch, and the terms they are made of. Each has shape (B, n), float32.

    Attributes:
        total: The sum of the terms, each times its weight.
        contrastive: How near a rollout is to its query.
        consistency: How near the rollouts of a group are to each other; 0 if there is one only.
        hard_negative: How far it is from what it should not match; 0 if there is nothing of the kind.
    """

    total: Tensor
    contrastive: Tensor
    consistency: Tensor
    hard_negative: Tensor


def contrastive(
    query: Tensor, rollouts: Tensor, negatives: Tensor | None, *, preset: Preset, temperature: float
) -> Tensor:
    """Nearness of rollouts to their query, in "paper" less that of the query to its negative.

    Args:
        query: Unit vectors. Shape: (B, d).
        rollouts: Unit vectors. Shape: (B, n, d).
        negatives: Unit vectors, or None. Shape: (B, d).
        preset: "paper" or "grace".
        temperature: τ.

    Returns:
        Shape: (B, n).
    """
    near = torch.einsum("bd,bnd->bn", query, rollouts) / temperature
    if preset == "paper" and negatives is not None:
        near = near - (query * negatives).sum(-1, keepdim=True) / temperature
    return near


def consistency(rollouts: Tensor, *, temperature: float) -> Tensor:
    """Mean nearness of a rollout to the others of its group.

    Args:
        rollouts: Unit vectors. Shape: (B, n, d).
        temperature: τ.

    Returns:
        Shape: (B, n).
    """
    n = rollouts.shape[1]
    if n == 1:
        return rollouts.new_zeros(rollouts.shape[:2])
    near = torch.einsum("bid,bjd->bij", rollouts, rollouts)
    others = near.sum(-1) - near.diagonal(dim1=1, dim2=2)
    return others / (n - 1) / temperature


def hard_negative(
    query: Tensor,
    rollouts: Tensor,
    negatives: Tensor | None,
    *,
    preset: Preset,
    mode: Mode,
    temperature: float,
    allowed: Tensor,
) -> Tensor:
    """Distance from what must not match; see the module for the formulas.

    Args:
        query: Unit vectors. Shape: (B, d).
        rollouts: Unit vectors. Shape: (B, n, d).
        negatives: Unit vectors, or None. Shape: (B, d).
        preset: "paper" or "grace".
        mode: "supervised" or "unsupervised".
        temperature: τ.
        allowed: Whether item b' may be a negative of item b. Shape: (B, B), bool.

    Returns:
        Shape: (B, n); 0 where an item has nothing to be told from.
    """
    batch, n, _ = rollouts.shape
    if preset == "grace":
        near = torch.einsum("bnd,cd->bnc", rollouts, query)  # to every query of the batch
        kept = allowed | torch.eye(batch, dtype=torch.bool, device=allowed.device)
        near = near.masked_fill(~kept[:, None], -torch.inf)
        alone = ~allowed.any(1)
        if negatives is not None:
            near = torch.cat([near, torch.einsum("bnd,bd->bn", rollouts, negatives)[..., None]], -1)
            alone = torch.zeros_like(alone)
        far = -torch.logsumexp(near / temperature, -1)
        # Alone in its batch, an item has nothing to be told from, and the term says so.
        return far.masked_fill(alone[:, None], 0.0)
    if mode == "supervised":
        near = torch.einsum("bd,cjd->bcj", query, rollouts).amax(-1)[:, None].expand(-1, n, -1)  # (B, n, B)
    else:
        near = torch.einsum("bnd,cd->bnc", rollouts, query)
    others = allowed.sum(1).clamp(min=1)[:, None]
    return -near.masked_fill(~allowed[:, None], 0.0).sum(-1) / others / temperature


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
    """Reward of every rollout of a batch, without the length penalty (see `grace_training.advantages`).

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
    _check(query, rollouts, negatives, preset=preset, mode=mode, temperature=temperature)
    batch = query.shape[0]
    query, rollouts = normalize(query.float(), dim=-1), normalize(rollouts.float(), dim=-1)
    negatives = None if negatives is None else normalize(negatives.float(), dim=-1)
    allowed = ~torch.eye(batch, dtype=torch.bool, device=query.device)
    if same_item is not None:
        if same_item.shape != (batch, batch) or same_item.dtype != torch.bool:
            raise InputError(f"same_item is {_shape(same_item)} of {same_item.dtype}: give ({batch}, {batch}) of bool.")
        allowed &= ~same_item.to(allowed.device)
    near = contrastive(query, rollouts, negatives, preset=preset, temperature=temperature)
    agreement = consistency(rollouts, temperature=temperature)
    far = hard_negative(query, rollouts, negatives, preset=preset, mode=mode, temperature=temperature, allowed=allowed)
    weight = HARD_NEGATIVE_WEIGHT[preset] if hard_negative_weight is None else hard_negative_weight
    return Rewards(
        total=contrastive_weight * near + consistency_weight * agreement + weight * far,
        contrastive=near,
        consistency=agreement,
        hard_negative=far,
    )


def _check(
    query: Tensor, rollouts: Tensor, negatives: Tensor | None, *, preset: str, mode: str, temperature: float
) -> None:
    if preset not in HARD_NEGATIVE_WEIGHT:
        raise InputError(f"preset={preset!r}: give 'paper' or 'grace'.")
    if mode not in ("supervised", "unsupervised"):
        raise InputError(f"mode={mode!r}: give 'supervised' or 'unsupervised'.")
    if not temperature > 0:
        raise InputError(f"temperature={temperature!r}: give a positive number.")
    if query.ndim != 2 or rollouts.ndim != 3 or rollouts.shape[::2] != query.shape or not rollouts.shape[1]:
        raise InputError(
            f"query is {_shape(query)} and rollouts {_shape(rollouts)}: give (B, d) and (B, n, d) with n of 1 or more."
        )
    if negatives is not None and negatives.shape != query.shape:
        raise InputError(f"negatives is {_shape(negatives)}: give {_shape(query)} as query, or None.")
    if mode == "unsupervised" and negatives is not None:
        raise InputError("negatives are given, but an unsupervised text has none: give None.")


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
