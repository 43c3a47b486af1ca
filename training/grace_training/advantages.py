"""From rewards to advantages: the penalty of rationales that never ended, and the comparison within a group."""

from __future__ import annotations

from torch import Tensor

from grace_retrieval.errors import InputError
from grace_training.rewards import Preset

__all__ = ["group_advantages", "penalise_truncated", "variance_within_groups"]

PAPER_PENALTY = -1.0


def penalise_truncated(rewards: Tensor, truncated: Tensor, *, preset: Preset, margin: float = 1.0) -> Tensor:
    """Replace the rewards of rollouts that hit the length limit without an end token.

    In "paper" such a reward is -1, which is more than many honest rewards. In "grace" it is the lowest reward of the
    group less a margin, and so never a bonus; where a whole group is truncated, no rollout is preferred.

    Args:
        rewards: Shape: (B, n).
        truncated: Whether a rollout hit the limit. Shape: (B, n), bool.
        preset: "paper" or "grace".
        margin: Distance to the lowest reward of the group ("grace"), in units of the reward.

    Returns:
        Shape: (B, n).

    Raises:
        InputError: If the margin is negative, or the shapes differ.
    """
    if rewards.shape != truncated.shape:
        raise InputError(f"rewards is {tuple(rewards.shape)}, truncated {tuple(truncated.shape)}: give one shape.")
    if margin < 0:
        raise InputError(f"margin={margin!r}: give 0 or more; less would reward rationales that never end.")
    if preset == "paper":
        return rewards.masked_fill(truncated, PAPER_PENALTY)
    return rewards.where(~truncated, rewards.amin(1, keepdim=True) - margin)


def group_advantages(rewards: Tensor) -> Tensor:
    """Rewards less the mean of their group, not divided by its deviation. Shape: (B, n)."""
    return rewards - rewards.mean(1, keepdim=True)


def variance_within_groups(rewards: Tensor) -> Tensor:
    """Mean over groups of the variance among a group's rollouts: 0 for a term that says nothing about them.

    Args:
        rewards: A term or the total. Shape: (B, n).

    Returns:
        A scalar; variance with n in the denominator.
    """
    return rewards.var(1, correction=0).mean()
