"""Pooled vectors by a plain forward pass that gradients can flow through: the same mean that the engines take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

__all__ = ["captured_states", "pad_right", "pool_sequences", "pool_states"]


def pool_states(states: Tensor, pooled: Tensor) -> Tensor:
    """Mean of the hidden states of the pooled tokens (h in docs/architecture.md).

    Args:
        states: Last hidden states. Shape: (rows, tokens, d).
        pooled: Which tokens count: those behind the system prefix, without padding and end token.
            Shape: (rows, tokens), bool.

    Returns:
        Shape: (rows, d), float32.
    """
    weights = pooled.to(torch.float32)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
    with torch.autocast(states.device.type, enabled=False):
        return torch.einsum("rt,rtd->rd", weights, states.float())


def pool_sequences(model: PreTrainedModel, sequences: Sequence[Sequence[int]], prefix_length: int) -> Tensor:
    """Pool whole sequences that share a system prefix, in one padded forward pass, with gradients if they are enabled.

    Args:
        model: The policy (not wrapped for several processes).
        sequences: Token ids of prompt and rationale, without end token.
        prefix_length: Number of leading tokens that are not pooled.

    Returns:
        Shape: (sequences, d), float32.
    """
    ids, mask = pad_right(sequences, model.device)
    states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    pooled = mask.bool()
    pooled[:, :prefix_length] = False
    return pool_states(states, pooled)


def pad_right(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask of sequences, padded behind. Shape of each: (sequences, longest), int64."""
    width = max(map(len, sequences))
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for row, tokens in enumerate(sequences):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    return ids.to(device), mask.to(device)


@contextmanager
def captured_states(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Collect the last hidden states of every forward pass inside the block, with their graphs.

    Args:
        model: The policy; passes through a wrapper of it are seen too.

    Yields:
        A list that gets one tensor of shape (rows, tokens, d) for every pass.
    """
    states: list[Tensor] = []
    hook = model.base_model.register_forward_hook(lambda *call: states.append(call[-1].last_hidden_state))
    try:
        yield states
    finally:
        hook.remove()
