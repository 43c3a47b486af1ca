"""How large a cache may grow, and how far it is emptied when it has grown too large."""

from __future__ import annotations

from grace_retrieval.errors import InputError

__all__ = ["check_max_bytes", "low_water"]

# Emptying a tenth at a time keeps evictions rare; the cap keeps one eviction in a large cache short.
_STEP_SHARE = 10
_STEP_CAP = 256 << 20


def check_max_bytes(max_bytes: int) -> int:
    """Check a limit.

    Args:
        max_bytes: The limit in bytes.

    Returns:
        The limit.

    Raises:
        InputError: It is not a positive int.
    """
    value: object = max_bytes
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"max_bytes={max_bytes!r}: give a positive int.")
    return value


def low_water(max_bytes: int) -> int:
    """Size to which a cache is emptied once it has passed its limit.

    Args:
        max_bytes: The limit in bytes.

    Returns:
        Nine tenths of the limit, or the limit less 256 MiB if that is more.

    Example:
        >>> low_water(1000)
        900
    """
    return max_bytes - min(max_bytes // _STEP_SHARE, _STEP_CAP)
