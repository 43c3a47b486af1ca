"""GenerationBatch: what a trainer knows of the batch in hand, from its rows to its rewards, in one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from grace_training.batch import RolloutBatch
from grace_training.rollouts import Rollout
from grace_training.texts import TextBatch

__all__ = ["GenerationBatch"]


@dataclass(kw_only=True, eq=False)
class GenerationBatch:
    """A generation batch of one process. TRL calls the trainer several times for one; each call fills in what it found.

    Attributes:
        rows: Rows of the data set, one a rollout.
        rollouts: What was written, one a row.
        others: What each row is compared with.
        negatives: What each row is to be told from; None where rows have none.
        gathered: The batch of all processes; None until it is scored.
        rewards: Its rewards, with the penalty of truncated rollouts. Shape: (B, n). None until it is scored.
        side: Queries and negatives with the gradients of their vectors, where the pathwise term is on.
        texts: The texts alone, in a batch for which nothing is written.
    """

    rows: Sequence[Mapping[str, Any]] = ()
    rollouts: list[Rollout] = field(default_factory=list)
    others: list[Rollout] = field(default_factory=list)
    negatives: list[Rollout] | None = None
    gathered: RolloutBatch | None = None
    rewards: Tensor | None = None
    side: list[tuple[Rollout, Tensor]] = field(default_factory=list)
    texts: TextBatch | None = None
