"""Filters: which documents a search may find, by their metadata. One set of rules for every face of an index.

Values have the types that JSON has: text, numbers (true and false among them), lists, objects and null. A number is
never equal to a text, so a filter that compares one with a column of the other is an error, not a search without hits.
"""

from __future__ import annotations

import datetime
import json
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from grace_retrieval.errors import InputError
from grace_retrieval.near import did_you_mean

__all__ = [
    "ORDERS",
    "Combination",
    "Comparison",
    "Filter",
    "Operator",
    "allowed_rows",
    "as_combination",
    "as_predicate",
    "kind_of",
]

Operator = Literal["==", "!=", ">", ">=", "<", "<=", "in", "not in", "contains"]
ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
"""Operators that need an order."""


@dataclass(frozen=True)
class Comparison:
    """A value of a document's metadata, compared with another.

    A document without the value, or with null, is never allowed, but by `== None`. Text is ordered character by
    character, as ISO 8601 wants it of dates; a value of another type than the other is in no order with it.

    Args:
        name: Name of the metadata.
        operator: How they are compared; "contains" is for lists, and for parts of a text.
        value: What with; a list for "in" and "not in". Dates are text, in ISO 8601, as they are in an index.

    Raises:
        InputError: If the operator is unknown, or the value is none that it can compare with.

    Example:
        >>> Comparison("year", ">=", 2020).allows({"year": 2024})
        True
    """

    name: str
    operator: Operator
    value: Any
    # Types that were seen under the name, to tell a column of another type from one without hits.
    _seen: set[str] = field(default_factory=set, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check the operator and its value."""
        if self.operator not in get_args(Operator):
            raise InputError(f"operator={self.operator!r}: give one of {', '.join(get_args(Operator))}.")
        value = _as_json(self.value)
        object.__setattr__(self, "value", value)
        if self.operator in ("in", "not in") and not isinstance(value, list):
            raise InputError(f"The filter {self} needs a list: give [{value!r}].")
        if self.operator in ORDERS and kind_of(value) not in ("number", "text"):
            raise InputError(f"The filter {self} needs a number or a text.")

    def __str__(self) -> str:
        """The comparison as it is said."""
        return f"{self.name} {self.operator} {self.value!r}"

    def allows(self, metadata: Mapping[str, Any]) -> bool:
        """Whether a document with such metadata may be found."""
        value = metadata.get(self.name)
        if value is None:
            equal = self.value if self.operator == "in" else [self.value]
            return self.name in metadata and self.operator in ("==", "in") and None in equal
        kind = kind_of(value)
        self.see(kind)
        if self.operator in ORDERS:
            return kind == kind_of(self.value) and ORDERS[self.operator](value, self.value)
        if self.operator == "contains":
            return bool(self.value in value) if kind == "list" or (kind == kind_of(self.value) == "text") else False
        if self.operator in ("in", "not in"):
            return (value in self.value) == (self.operator == "in")
        return bool(value == self.value) == (self.operator == "==")

    def see(self, kind: str) -> None:
        """Note that the metadata has a value of a type, for `check_types`.

        Args:
            kind: As `kind_of` says it.
        """
        self._seen.add(kind)

    def check_types(self) -> None:
        """Refuse the comparison, after all documents were looked at, if none could be compared at all.

        Raises:
            InputError: If the column has values, and none of the type that is compared with.
        """
        asked = self.value if self.operator in ("in", "not in") else [self.value]
        wanted = {kind_of(value) for value in asked} - {"null"}
        if self.operator == "contains":
            wanted = {"list", *(wanted & {"text"})}
        if wanted and self._seen and not wanted & self._seen:
            there, given = (" and ".join(sorted(kinds)) for kinds in (self._seen, wanted))
            raise InputError(
                f"filter: {self} compares with {given}, and {self.name!r} is {there} in all documents. Give {there}, "
                f"or index the column as {given}: columns of CSV files are text, those of JSON lines and parquet keep "
                "their types."
            )


@dataclass(frozen=True)
class Combination:
    """Comparisons, of which all, any or none must hold.

    Args:
        parts: Comparisons and combinations.
        how: How many of them.
    """

    parts: tuple[Comparison | Combination, ...]
    how: Literal["all", "any", "none"] = "all"

    def allows(self, metadata: Mapping[str, Any]) -> bool:
        """Whether a document with such metadata may be found."""
        # A list, because every comparison is to see every document.
        found = [part.allows(metadata) for part in self.parts]
        return all(found) if self.how == "all" else any(found) == (self.how == "any")

    def comparisons(self) -> Iterator[Comparison]:
        """All comparisons, however deep."""
        for part in self.parts:
            yield from part.comparisons() if isinstance(part, Combination) else (part,)


Filter = Mapping[str, Any] | Callable[[dict[str, Any]], bool] | Combination
"""Metadata that must be equal (a list: one of them), a function of a document's metadata, or comparisons."""


def as_predicate(filter: Filter) -> Callable[[dict[str, Any]], bool]:
    """A filter as a function of metadata.

    Args:
        filter: A mapping, a function or a combination.

    Raises:
        InputError: If it is none of them.

    Example:
        >>> wanted = as_predicate({"lang": "en", "year": [2024, 2025]})
        >>> wanted({"lang": "en", "year": 2025}), wanted({"lang": "en"})
        (True, False)
    """
    if callable(filter):
        return filter
    return as_combination(filter).allows


def allowed_rows(filter: Filter, metadata: Iterable[list[str | None]], rows: int) -> npt.NDArray[np.bool_]:
    """Which rows a filter allows.

    Args:
        filter: A filter; a function may have an attribute `names`, the metadata that it asks for.
        metadata: Metadata of all rows as JSON, in pieces.
        rows: Number of rows.

    Returns:
        Shape: (rows,), bool.

    Raises:
        InputError: If it is no filter, names metadata that no row has, or compares it with a value of another type than
            all rows have.
    """
    compared = None if callable(filter) else as_combination(filter)
    predicate = as_predicate(filter) if compared is None else compared.allows
    names = set[str]()
    allowed = np.zeros(rows, dtype=bool)
    start = 0
    for piece in metadata:
        read = [json.loads(text) if text else {} for text in piece]
        names.update(*read)
        allowed[start : start + len(piece)] = [bool(predicate(values)) for values in read]
        start += len(piece)
    comparisons = [] if compared is None or not rows else list(compared.comparisons())
    asked = {comparison.name for comparison in comparisons} or set(getattr(filter, "names", ()))
    if rows and (unknown := sorted(set(asked) - names)):
        there = f"Give one of {', '.join(map(repr, sorted(names)))}" if names else "None has any metadata"
        near = did_you_mean(unknown[0], names)
        raise InputError(f"filter: no document has metadata {', '.join(map(repr, unknown))}.{near} {there}.")
    for comparison in comparisons:
        comparison.check_types()
    return allowed


def as_combination(filter: Mapping[str, Any] | Combination) -> Combination:
    """A filter as comparisons that have seen nothing yet.

    Args:
        filter: A mapping or a combination.

    Raises:
        InputError: If it is neither.
    """
    if isinstance(filter, Combination):
        return Combination(
            tuple(
                as_combination(part)
                if isinstance(part, Combination)
                else Comparison(part.name, part.operator, part.value)
                for part in filter.parts
            ),
            filter.how,
        )
    if not isinstance(filter, Mapping):
        raise InputError(
            f"filter is {type(filter).__name__}: give a mapping from metadata names to values, or a function of a "
            "document's metadata."
        )
    several = (list, tuple, set, frozenset)
    return Combination(
        tuple(
            Comparison(name, "in", list(value)) if isinstance(value, several) else Comparison(name, "==", value)
            for name, value in filter.items()
        )
    )


def _as_json(value: Any) -> Any:
    """A value as metadata have it."""
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_as_json(item) for item in value]
    return value


def kind_of(value: Any) -> str:
    """What JSON calls the type of a value; true and false count as 1 and 0, as in Python.

    Args:
        value: A value.
    """
    if value is None:
        return "null"
    if isinstance(value, (bool, int, float)):
        return "number"
    for kind, name in ((str, "text"), (list, "list"), (Mapping, "object")):
        if isinstance(value, kind):
            return name
    return type(value).__name__
