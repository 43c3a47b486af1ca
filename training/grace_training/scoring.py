"""From a batch of rollouts to rewards, over all processes, and to the gradient of the hidden states themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from grace_training.advantages import penalise_truncated
from grace_training.config import GraceConfig
from grace_training.rewards import Rewards, composite_reward
from grace_training.rollouts import PolicyWriter, Role, Rollout

__all__ = [
    "Batch",
    "PathwiseGradients",
    "info_nce",
    "pathwise_gradients",
    "same_items",
    "score_batch",
    "text_numbers",
    "write_others",
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """A generation batch of all processes, one entry a group of rollouts.

    Attributes:
        rollouts: Pooled vectors. Shape: (B, n, d).
        others: Pooled vectors of what the rollouts must be near to. Shape: (B, d).
        negatives: Pooled vectors, or None where the data has none. Shape: (B, d).
        truncated: Rollouts without an end. Shape: (B, n), bool.
        same_item: Groups that are no negatives of each other. Shape: (B, B), bool.
        rewards: The terms.
        penalised: Rewards with the penalty of truncated rollouts. Shape: (B, n).
    """

    rollouts: Tensor
    others: Tensor
    negatives: Tensor | None
    truncated: Tensor
    same_item: Tensor
    rewards: Rewards
    penalised: Tensor


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


def write_others(
    writer: PolicyWriter, rows: Sequence[Mapping[str, Any]], *, temperature: float, seed: int, sample: int
) -> tuple[list[Rollout], list[Rollout] | None]:
    """Have one rationale written for what each row is compared with.

    Args:
        writer: Writes.
        rows: Rows of the data set with "other", "other_role" and "negative".
        temperature: Temperature of these rationales.
        seed: Seed of the batch.
        sample: A sample that no rollout has, so that a text and its own rollout draw other random numbers.

    Returns:
        One Rollout a row, and one for each negative, or None if the rows have none.
    """
    options: dict[str, Any] = {"temperature": temperature, "seed": seed}
    written: dict[tuple[str, str], Rollout] = {}
    wanted: dict[Role, list[str]] = {"query": [], "document": []}
    for row in rows:
        wanted[row["other_role"]].append(row["other"])
        if row.get("negative") is not None:
            wanted["document"].append(row["negative"])
    for role, texts in wanted.items():
        unique = list(dict.fromkeys(texts))
        found = writer.write(unique, role, samples=[sample] * len(unique), **options)
        written |= {(role, text): rollout for text, rollout in zip(unique, found, strict=True)}
    others = [written[row["other_role"], row["other"]] for row in rows]
    if any(row.get("negative") is None for row in rows):
        return others, None
    return others, [written["document", row["negative"]] for row in rows]


def score_batch(
    rows: Sequence[Mapping[str, Any]],
    vectors: Tensor,
    truncated: Sequence[bool],
    others: Tensor,
    negatives: Tensor | None,
    config: GraceConfig,
    num_generations: int,
) -> Batch:
    """Gather a batch from all processes and score it.

    Args:
        rows: This process's rows, one a rollout.
        vectors: Pooled vectors of its rollouts. Shape: (rows, d).
        truncated: Which of them have no end.
        others: Pooled vectors of what they are compared with. Shape: (rows, d).
        negatives: Pooled vectors of their negatives, or None. Shape: (rows, d).
        config: Options of the reward.
        num_generations: Rollouts of a group; a group may lie on two processes.

    Returns:
        The batch, the same on every process.
    """
    device, dim = vectors.device, vectors.shape[1]
    texts = text_numbers(rows).to(device)
    flags = torch.tensor(list(truncated), device=device)
    vectors, others, texts, flags = (gather(tensor) for tensor in (vectors, others, texts, flags))
    negatives = None if negatives is None else gather(negatives)
    first = slice(None, None, num_generations)
    same_item = same_items(texts[first])
    rollouts = vectors.view(-1, num_generations, dim)
    others, negatives = others[first], None if negatives is None else negatives[first]
    rewards = composite_reward(
        rollouts=rollouts, query=others, negatives=negatives, same_item=same_item, **config.reward_options()
    )
    flags = flags.view(-1, num_generations)
    return Batch(
        rollouts=rollouts,
        others=others,
        negatives=negatives,
        truncated=flags,
        same_item=same_item,
        rewards=rewards,
        penalised=penalise_truncated(rewards.total, flags, preset=config.preset, margin=config.truncation_margin),
    )


def pathwise_gradients(batch: Batch, config: GraceConfig) -> PathwiseGradients:
    """Differentiate InfoNCE of a batch by its pooled vectors, once; the forward passes multiply with what comes out.

    Args:
        batch: A scored batch.
        config: Options of the reward: temperature.
    """
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
            same_item=batch.same_item,
            temperature=config.reward_temperature,
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
