"""MetadataColumns: the metadata of an opened index by name, read when a filter asks for it and kept within a budget."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from grace_retrieval.indexing.filters import Combination, Comparison, Filter, allowed_rows, as_combination
from grace_retrieval.indexing.rows import RowReader

if TYPE_CHECKING:
    from grace_retrieval.indexing.values import Values

__all__ = ["MetadataColumns"]

Mask = npt.NDArray[np.bool_]

_ROWS = 8192
"""Rows that are read, and whose values are kept, together."""


class MetadataColumns:
    """Says which rows a filter allows, as `allowed_rows` does, without reading all metadata each time.

    A name's values are read at the first filter that asks for it, `_ROWS` rows at a time. Filters that are functions
    are shown the metadata of every row, so all is read for them.

    Args:
        rows: The rows of the index.
        max_bytes: Most bytes of values that are kept. What is beyond is read again at every search.
    """

    def __init__(self, rows: RowReader, *, max_bytes: int = 256 << 20) -> None:
        self._rows = rows
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, int], Values] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def allowed(self, filter: Filter) -> Mask:
        """Which rows a filter allows. Shape: (rows,), bool.

        Args:
            filter: A filter, as in `GraceIndex.search`.

        Raises:
            InputError: If it is no filter, names metadata that no row has, or compares it with a value of another type
                than all rows have.
            IndexCorruptedError: If a shard is missing or damaged.
        """
        if callable(filter):
            return self._one_by_one(filter)
        wanted = as_combination(filter)
        comparisons = list(wanted.comparisons())
        names = list(dict.fromkeys(comparison.name for comparison in comparisons))
        allowed = np.zeros(len(self._rows), dtype=bool)
        unknown = set(names)
        for start in range(0, len(allowed), _ROWS):
            stop = min(start + _ROWS, len(allowed))
            try:
                values = self._values(names, start, stop)
            except (pa.ArrowException, TypeError):  # a name that is no text, more text than an array holds
                return self._one_by_one(filter)
            unknown -= {name for name, found in values.items() if found.there}
            allowed[start:stop] = _allowed(wanted, values, stop - start)
        if len(allowed):
            if unknown:  # an error that names what there is
                return self._one_by_one(filter)
            for comparison in comparisons:
                comparison.check_types()
        return allowed

    def forget(self) -> None:
        """Forget what was read."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def _one_by_one(self, filter: Filter) -> Mask:
        return allowed_rows(filter, self._rows.column("metadata"), len(self._rows))

    def _values(self, names: Sequence[str], start: int, stop: int) -> dict[str, Values]:
        """Values of names in some rows, from memory or else from the shards."""
        with self._lock:
            found = {name: self._kept[name, start] for name in names if (name, start) in self._kept}
            for name in found:
                self._kept.move_to_end((name, start))
        if len(found) < len(names):
            from grace_retrieval.indexing.values import read_values  # which loads Arrow's functions

            texts = self._rows.part("metadata", start, stop)
            for name in names:
                if name not in found:
                    found[name] = read_values(texts, name)
                    self._keep((name, start), found[name], names)
        return found

    def _keep(self, key: tuple[str, int], values: Values, asked: Sequence[str]) -> None:
        """Keep values if there is room, or if room can be made of names that are not asked for now.

        Otherwise each part of a column that is too large would push out the next one, and none would ever be found.
        """
        with self._lock:
            if key in self._kept:
                return
            while self._bytes + values.bytes > self._max_bytes:
                other = next((kept for kept in self._kept if kept[0] not in asked), None)
                if other is None:
                    return
                self._bytes -= self._kept.pop(other).bytes
            self._kept[key] = values
            self._bytes += values.bytes


def _allowed(part: Combination | Comparison, values: Mapping[str, Values], rows: int) -> Mask:
    if isinstance(part, Comparison):
        return values[part.name].matches(part)
    found = [_allowed(inner, values, rows) for inner in part.parts]
    if part.how == "all":
        return np.logical_and.reduce(found) if found else np.ones(rows, dtype=bool)
    any_ = np.logical_or.reduce(found) if found else np.zeros(rows, dtype=bool)
    return any_ if part.how == "any" else ~any_
