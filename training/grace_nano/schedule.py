"""Learning rate as a function of the elapsed fraction of the time budget."""

from __future__ import annotations

__all__ = ["learning_rate_factor"]


def learning_rate_factor(fraction: float, warmup_fraction: float, decay_start: float) -> float:
    """Linear warm-up, a plateau, then linear decay that reaches zero when the budget is spent.

    Args:
        fraction: Active training time divided by the budget.
        warmup_fraction: End of the warm-up.
        decay_start: Start of the decay.

    Returns:
        A factor in [0, 1].

    Example:
        >>> [learning_rate_factor(f, 0.1, 0.5) for f in (0.05, 0.3, 0.75, 1.2)]
        [0.5, 1.0, 0.5, 0.0]
    """
    if fraction < warmup_fraction:
        return max(fraction, 0.0) / warmup_fraction
    if fraction < decay_start:
        return 1.0
    return max(0.0, (1.0 - fraction) / (1.0 - decay_start))
