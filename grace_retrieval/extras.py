"""Optional dependencies: are they there, and new enough?"""

from __future__ import annotations

import importlib
import importlib.metadata

from grace_retrieval.errors import MissingExtraError

__all__ = ["require_extra"]


def require_extra(module: str, distribution: str, minimum: str, *, extra: str, purpose: str) -> None:
    """Import an optional dependency.

    Args:
        module: Name to import.
        distribution: Name on the package index.
        minimum: Oldest version that is supported, such as "1.0".
        extra: Extra of grace-retrieval that installs it.
        purpose: What needs it, for the message.

    Raises:
        MissingExtraError: If it is not installed, or too old. An import error inside of it is raised as it is.
    """
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0] and error.name != module:
            raise
        raise MissingExtraError(distribution, extra, purpose) from error
    installed = importlib.metadata.version(distribution)
    if _numbers(installed) < _numbers(minimum):
        raise MissingExtraError(f"{distribution}>={minimum}", extra, purpose, found=f"{distribution} {installed}")


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "1.10.0rc1" is (1, 10)."""
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
