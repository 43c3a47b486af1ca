"""Weights between those before and those after training, which keep much of both (WiSE-FT, Wortsman et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from grace_retrieval.errors import InputError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["interpolate_weights"]


@torch.no_grad()
def interpolate_weights(trained: nn.Module, start: nn.Module, share: float) -> None:
    """Put share * trained + (1 - share) * start in the place of trained weights.

    Args:
        trained: Model that was trained; changed in place.
        start: The same model before.
        share: Share of the trained weights, from 0 to 1.

    Raises:
        InputError: If the share is out of range, or the models differ in names or shapes of their weights.

    Example:
        >>> from torch import nn
        >>> trained, start = nn.Linear(1, 1), nn.Linear(1, 1)
        >>> _ = nn.init.ones_(trained.weight), nn.init.zeros_(start.weight)
        >>> interpolate_weights(trained, start, 0.25)
        >>> trained.weight.item()
        0.25
    """
    if not 0 <= share <= 1:
        raise InputError(f"interpolation={share}: give the share of the trained weights, from 0 to 1.")
    before = dict(start.named_parameters())
    after = dict(trained.named_parameters())
    if {name: weight.shape for name, weight in before.items()} != {
        name: weight.shape for name, weight in after.items()
    }:
        raise InputError("interpolation needs the model that training started from, and this one has other weights.")
    for name, weight in after.items():
        weight.copy_(torch.lerp(before[name].to(weight.device, torch.float32), weight.float(), share))


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in weights.items()}
