"""What an index can be filtered by: names of metadata with their values, where these are few."""

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grace_retrieval.indexing import GraceIndex

__all__ = ["describe_index"]

MOST_VALUES = 50
"""A name with more values than that is no filter to choose from; a request may name it all the same."""

READ_ROWS = 200_000
"""Rows that are read for it, so that a large index does not hold up the start."""


def describe_index(index: GraceIndex) -> dict[str, Any]:
    """Whether an index can be searched with BM25 too, and what it can be filtered by.

    Args:
        index: The index.

    Returns:
        "hybrid", and "filters": values by name, JSON values.
    """
    values: dict[str, dict[str, Any]] = {}
    read = 0
    for piece in index.rows.column("metadata"):
        for text in piece:
            for name, value in (json.loads(text) if text else {}).items():
                known = values.setdefault(name, {})
                if len(known) <= MOST_VALUES:
                    # A list or an object is no value that a filter could be equal to by choice: that many are too many.
                    shown = isinstance(value, (str, int, float, bool)) and len(str(value)) <= 80
                    known.update({json.dumps(value): value} if shown else {str(place): 0 for place in range(99)})
        read += len(piece)
        if read >= READ_ROWS:
            break
    return {
        "hybrid": importlib.util.find_spec("bm25s") is not None,
        "filters": {
            name: sorted(known.values(), key=lambda value: (str(type(value)), value))
            for name, known in sorted(values.items())
            if len(known) <= MOST_VALUES
        },
    }
