"""Filters: which documents a search may find, by their metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_retrieval.errors import InputError
from grace_retrieval.near import did_you_mean

__all__ = ["Filter", "allowed_rows", "as_predicate"]

Filter = Mapping[str, Any] | Callable[[dict[str, Any]], bool]
"""Metadata that must be equal (a list: one of them), or a function of a document's metadata."""


def as_predicate(filter: Filter) -> Callable[[dict[str, Any]], bool]:
    """A filter as a function of metadata.

    Args:
        filter: A mapping or a function.

    Raises:
        InputError: If it is neither.

    Example:
        >>> wanted = as_predicate({"lang": "en", "year": [2024, 2025]})
        >>> wanted({"lang": "en", "year": 2025}), wanted({"lang": "en"})
        (True, False)
    """
    if callable(filter):
        return filter
    if not isinstance(filter, Mapping):
        raise InputError(
            f"filter is {type(filter).__name__}: give a mapping from metadata names to values, or a function of a "
            "document's metadata."
        )
    wanted = {
        name: list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]
        for name, value in filter.items()
    }
    return lambda metadata: all(name in metadata and metadata[name] in values for name, values in wanted.items())


def allowed_rows(filter: Filter, metadata: Iterable[list[str | None]], rows: int) -> npt.NDArray[np.bool_]:
    """Which rows a filter allows.

    Args:
        filter: A filter; a function may have an attribute `names`, the metadata that it asks for.
        metadata: Metadata of all rows as JSON, in pieces.
        rows: Number of rows.

    Returns:
        Shape: (rows,), bool.

    Raises:
        InputError: If it is neither a mapping nor a function, or names metadata that no row has.
    """
    predicate = as_predicate(filter)
    names = set[str]()
    allowed = np.zeros(rows, dtype=bool)
    start = 0
    for piece in metadata:
        read = [json.loads(text) if text else {} for text in piece]
        names.update(*read)
        allowed[start : start + len(piece)] = [bool(predicate(values)) for values in read]
        start += len(piece)
    asked = filter if isinstance(filter, Mapping) else getattr(filter, "names", ())
    if rows and (unknown := sorted(set(asked) - names)):
        there = f"Give one of {', '.join(map(repr, sorted(names)))}" if names else "None has any metadata"
        near = did_you_mean(unknown[0], names)
        raise InputError(f"filter: no document has metadata {', '.join(map(repr, unknown))}.{near} {there}.")
    return allowed
