"""From the rollouts of all processes to one batch, and to the gradient of its hidden states."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather, gather_object
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from grace_training.batch import RolloutBatch
from grace_training.config import GraceConfig

__all__ = [
    "PathwiseGradients",
    "gather_batch",
    "info_nce",
    "pathwise_gradients",
    "same_items",
    "text_numbers",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class PathwiseGradients:
    """Gradient of InfoNCE with respect to each pooled vector of a batch.

    Attributes:
        loss: InfoNCE, a scalar.
        rollouts: Shape: (B, n, d).
        others: Shape: (B, d).
        negatives: Shape: (B, d), or None.
    """

    loss: Tensor
    rollouts: Tensor
    others: Tensor
    negatives: Tensor | None


def gather_batch(
    rows: Sequence[Mapping[str, Any]],
    vectors: Tensor,
    others: Tensor,
    negatives: Tensor | None,
    config: GraceConfig,
    num_generations: int,
    *,
    written: Sequence[tuple[str, int, bool]] | None = None,
) -> RolloutBatch:
    """Gather a batch from all processes.

    Args:
        rows: This process's rows, one a rollout.
        vectors: Pooled vectors of its rollouts. Shape: (rows, d).
        others: Pooled vectors of what they are compared with. Shape: (rows, d).
        negatives: Pooled vectors of their negatives, or None. Shape: (rows, d).
        config: Options of the reward.
        num_generations: Rollouts of a group; a group may lie on two processes.
        written: Of each rollout, the rationale, its number of tokens, and whether it has no end; None if nothing was
            written.

    Returns:
        The batch, the same on every process.
    """
    device, n = vectors.device, num_generations
    numbers = text_numbers(rows).to(device)
    vectors, others, numbers = (gather(tensor) for tensor in (vectors, others, numbers))
    negatives = None if negatives is None else gather(negatives)
    first = slice(None, None, n)
    known: dict[str, Any] = {}
    if written is not None:
        texts = gather_object([(row["prompt"], row["other"], *entry) for row, entry in zip(rows, written, strict=True)])
        prompts, compared, rationales, lengths, truncated = zip(*texts, strict=True)
        known = {
            "texts": prompts[first],
            "other_texts": compared[first],
            "rationales": tuple(rationales[start : start + n] for start in range(0, len(rationales), n)),
            "lengths": torch.tensor(lengths, device=device).view(-1, n),
            "truncated": torch.tensor(truncated, device=device).view(-1, n),
        }
    return RolloutBatch(
        rollouts=vectors.view(-1, n, vectors.shape[1]),
        others=others[first],
        negatives=None if negatives is None else negatives[first],
        same_item=same_items(numbers[first]),
        preset=config.preset,
        mode=config.mode,
        temperature=config.reward_temperature,
        **known,
    )


def pathwise_gradients(batch: RolloutBatch) -> PathwiseGradients:
    """Differentiate InfoNCE of a batch by its pooled vectors, once; the forward passes multiply with what comes out.

    Args:
        batch: A batch; texts that say the same are known in it.
    """
    same_item = batch.same_item
    if same_item is None:
        same_item = torch.zeros(len(batch.others), len(batch.others), dtype=torch.bool, device=batch.others.device)
    leaves = [
        None if tensor is None else tensor.detach().clone().requires_grad_()
        for tensor in (batch.rollouts, batch.others, batch.negatives)
    ]
    rollouts, others, negatives = leaves
    with torch.enable_grad():
        loss = info_nce(
            rollouts,  # type: ignore[arg-type]
            others,  # type: ignore[arg-type]
            negatives,
            same_item=same_item,
            temperature=batch.temperature,
        )
    found = iter(torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None]))
    gradients = [None if leaf is None else next(found) for leaf in leaves]
    return PathwiseGradients(
        loss=loss.detach(),
        rollouts=gradients[0],  # type: ignore[arg-type]
        others=gradients[1],  # type: ignore[arg-type]
        negatives=gradients[2],
    )


def info_nce(
    rollouts: Tensor, others: Tensor, negatives: Tensor | None, *, same_item: Tensor, temperature: float
) -> Tensor:
    """InfoNCE in both directions: find the other text by each rollout, and a rollout among its like by the other text.

    Args:
        rollouts: Pooled vectors. Shape: (B, n, d).
        others: Shape: (B, d).
        negatives: Must be found by neither, or None. Shape: (B, d).
        same_item: Groups that are no negatives of each other. Shape: (B, B), bool.
        temperature: τ.

    Returns:
        A scalar: the mean over groups, rollouts and directions.
    """
    rollouts, others = normalize(rollouts, dim=-1), normalize(others, dim=-1)
    item = torch.arange(len(others), device=others.device)
    excluded = same_item & (item[:, None] != item)
    near = torch.einsum("bnd,cd->nbc", rollouts, others).masked_fill(excluded, -torch.inf)
    by_rollout, by_other = near, near.transpose(1, 2)
    if negatives is not None:
        negatives = normalize(negatives, dim=-1)
        by_rollout = torch.cat([by_rollout, torch.einsum("bnd,bd->nb", rollouts, negatives)[..., None]], -1)
        near_other = (others * negatives).sum(-1)[None, :, None].expand(len(near), -1, -1)
        by_other = torch.cat([by_other, near_other], -1)
    target = item.repeat(len(near))
    losses = [cross_entropy(scores.flatten(0, 1) / temperature, target) for scores in (by_rollout, by_other)]
    return torch.stack(losses).mean()


def text_numbers(rows: Sequence[Mapping[str, Any]]) -> Tensor:
    """Role, text and other text of each row as numbers that can be gathered. Shape: (rows, 3), int64."""
    return torch.tensor([[_number(row["role"]), _number(row["prompt"]), _number(row["other"])] for row in rows])


def same_items(texts: Tensor) -> Tensor:
    """Which items are no negatives of each other. Shape: (B, B), bool.

    Args:
        texts: From `text_numbers`. Shape: (B, 3).
    """
    alike = texts[:, None] == texts[None]
    # Of one role, and neither text repeated: only such items tell each other apart.
    return ~alike[..., 0] | alike[..., 1] | alike[..., 2]


def _number(text: str) -> int:
    """A text as a number that can be gathered; equal texts have equal numbers on every process."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int(np.frombuffer(digest, dtype="<i8")[0])
