"""Names near to one that is unknown, for messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean", "near_names"]


def near_names(name: str, known: Iterable[str]) -> list[str]:
    """Names that may have been meant, the nearest first, and at most three.

    Args:
        name: The unknown name.
        known: All names there are.

    Example:
        >>> near_names("learning_rat", ["learning_rate", "logging_steps"])
        ['learning_rate']
        >>> near_names("batch_size", ["per_device_train_batch_size", "seed"])
        ['per_device_train_batch_size']
    """
    names = sorted(set(known))
    lower = name.lower()
    close = difflib.get_close_matches(lower, names, n=3)
    holding = [other for other in names if len(lower) > 2 and lower in other.lower()]
    ending = [other for other in holding if other.lower().endswith(lower)]
    return list(dict.fromkeys([*ending, *close, *holding]))[:3]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Say which names may have been meant: " Did you mean …?", or nothing where none is near.

    Example:
        >>> did_you_mean("titel", ["title", "year"])
        ' Did you mean title?'
        >>> did_you_mean("colour", ["title", "year"])
        ''
    """
    near = near_names(name, known)
    return f" Did you mean {' or '.join(near)}?" if near else ""
