"""Weights between those before and after training (WiSE-FT), of one run or several (model soups).

Both by Wortsman et al. 2022. They keep much of the language model and of what was learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from grace_retrieval.errors import InputError

__all__ = ["interpolated"]


@torch.no_grad()
def interpolated(
    start: Mapping[str, Tensor], trained: Sequence[Mapping[str, Tensor]], share: float
) -> Iterator[tuple[str, Tensor]]:
    """Give share * mean of trained + (1 - share) * start, one weight after the other.

    Args:
        start: Weights before training, by name.
        trained: Those of one run or several that started there.
        share: Share of the trained weights, from 0 to 1.

    Yields:
        Name and float32 tensor, on the device of the first run's.

    Raises:
        InputError: If the share is out of range, or the models differ in names or shapes of their weights.

    Example:
        >>> start, trained = {"bias": torch.zeros(1)}, [{"bias": torch.ones(1)}, {"bias": torch.full((1,), 3.0)}]
        >>> dict(interpolated(start, trained, 0.25))
        {'bias': tensor([0.5000])}
    """
    if not 0 <= share <= 1:
        raise InputError(f"interpolation={share}: give the share of the trained weights, from 0 to 1.")
    if any(_shapes(weights) != _shapes(start) for weights in trained):
        raise InputError(
            "Interpolation needs the model that training started from, and these weights have other names or shapes."
        )
    for name, before in start.items():
        between = (1 - share) * before.to(trained[0][name].device, torch.float32)
        for weights in trained:
            between += share / len(trained) * weights[name].float()
        yield name, between


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in weights.items()}
