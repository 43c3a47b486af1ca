"""RolloutBatch: everything that is known of a batch when its rollouts are rewarded, in one object.

A reward term is a function of it. It knows no trainer and no process: what several processes wrote has been gathered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from grace_retrieval.errors import InputError

__all__ = ["Mode", "Preset", "RewardTerm", "RolloutBatch"]

Preset = Literal["paper", "grace"]
Mode = Literal["supervised", "unsupervised"]


@dataclass(frozen=True, kw_only=True, eq=False)
class RolloutBatch:
    """B texts with n rollouts each, and what each is compared with.

    Attributes:
        rollouts: Pooled vectors of the texts with their rollouts, not normalised. Shape: (B, n, d).
        others: Pooled vectors of what the rollouts must be near to: the queries of documents, the documents of queries;
            unsupervised, the texts themselves. Shape: (B, d).
        negatives: Pooled vectors of given negatives, or None where the data has none. Shape: (B, d).
        same_item: Which texts say the same (a repeated query or document) and so are no negatives of each other. Shape:
            (B, B), bool. None: every text differs from every other.
        truncated: Rollouts that hit the token budget. Shape: (B, n), bool. None where nothing was written.
        lengths: Tokens of the rationales, without end token. Shape: (B, n), int64. None where nothing was written.
        rationales: What was written, n strings a text; empty where nothing was written.
        texts: The texts, without prompt; empty where they are not known.
        other_texts: What they are compared with; empty where it is not known.
        preset: "paper" or "grace".
        mode: "supervised" or "unsupervised".
        temperature: τ, by which similarities are divided.

    Raises:
        InputError: If shapes do not fit, an option is unknown, or the temperature is not positive.
    """

    rollouts: Tensor
    others: Tensor
    negatives: Tensor | None = None
    same_item: Tensor | None = None
    truncated: Tensor | None = None
    lengths: Tensor | None = None
    rationales: tuple[tuple[str, ...], ...] = ()
    texts: tuple[str, ...] = ()
    other_texts: tuple[str, ...] = ()
    preset: Preset = "grace"
    mode: Mode = "supervised"
    temperature: float = 0.1

    def __post_init__(self) -> None:
        """Check shapes and options."""
        if self.preset not in ("paper", "grace"):
            raise InputError(f"preset={self.preset!r}: give 'paper' or 'grace'.")
        if self.mode not in ("supervised", "unsupervised"):
            raise InputError(f"mode={self.mode!r}: give 'supervised' or 'unsupervised'.")
        if not self.temperature > 0:
            raise InputError(f"temperature={self.temperature!r}: give a positive number.")
        query, rollouts, batch = self.others, self.rollouts, len(self.others)
        if query.ndim != 2 or rollouts.ndim != 3 or rollouts.shape[::2] != query.shape or not rollouts.shape[1]:
            raise InputError(
                f"query is {_shape(query)} and rollouts {_shape(rollouts)}: give (B, d) and (B, n, d) with n of 1 or "
                "more."
            )
        if self.negatives is not None and self.negatives.shape != query.shape:
            raise InputError(f"negatives is {_shape(self.negatives)}: give {_shape(query)} as query, or None.")
        if self.mode == "unsupervised" and self.negatives is not None:
            raise InputError("negatives are given, but an unsupervised text has none: give None.")
        same = self.same_item
        if same is not None and (same.shape != (batch, batch) or same.dtype != torch.bool):
            raise InputError(f"same_item is {_shape(same)} of {same.dtype}: give ({batch}, {batch}) of bool.")

    @property
    def shape(self) -> tuple[int, int]:
        """(B, n), the shape of a reward term."""
        return self.rollouts.shape[0], self.rollouts.shape[1]

    @cached_property
    def unit_rollouts(self) -> Tensor:
        """`rollouts` of length 1, float32. Shape: (B, n, d)."""
        return normalize(self.rollouts.float(), dim=-1)

    @cached_property
    def unit_others(self) -> Tensor:
        """`others` of length 1, float32. Shape: (B, d)."""
        return normalize(self.others.float(), dim=-1)

    @cached_property
    def unit_negatives(self) -> Tensor | None:
        """`negatives` of length 1, float32. Shape: (B, d)."""
        return None if self.negatives is None else normalize(self.negatives.float(), dim=-1)

    @cached_property
    def rivals(self) -> Tensor:
        """Whether text b' may be a negative of text b. Shape: (B, B), bool."""
        rivals = ~torch.eye(len(self.others), dtype=torch.bool, device=self.others.device)
        return rivals if self.same_item is None else rivals & ~self.same_item.to(rivals.device)


RewardTerm = Callable[[RolloutBatch], Tensor]
"""A term of the reward: from a batch to one number a rollout. Shape: (B, n)."""


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
