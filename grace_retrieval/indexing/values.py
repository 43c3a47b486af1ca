"""Values of one name in the metadata of some rows, read by Arrow and compared all at once.

`Comparison` says what a comparison means, value by value. Here the same is asked of arrays: of numbers, of the distinct
words of a column, and of whatever else JSON holds, which is kept as Python has it and asked one by one. What Arrow
would read in another way than Python (whole numbers beyond 2**53 among fractions, a name twice in one object, half of a
surrogate pair) is left to Python.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from grace_retrieval.indexing.filters import ORDERS, Comparison, kind_of

__all__ = ["Values", "read_values"]

Mask = npt.NDArray[np.bool_]

_EXACT = 2**53
"""Whole numbers up to here are floats without loss."""


class Values(Protocol):
    """Values of one name in some rows.

    Attributes:
        bytes: Memory they take.
        there: Whether any row has the name, with null or with a value.
    """

    bytes: int
    there: bool

    def matches(self, comparison: Comparison) -> Mask:
        """Which rows a comparison allows. Shape: (rows,), bool."""


def read_values(texts: pa.StringArray, name: str) -> Values:
    """Values of one name.

    Args:
        texts: Metadata of rows as JSON objects; null and "" stand for none.
        name: The name.
    """
    texts = pc.fill_null(texts, _texts(["{}"])[0])
    for type_, make in _TYPES:
        try:
            column = _read(texts, name, type_)
            if column is not None:
                return make(column, _nulls(texts, column, name))
        except (pa.ArrowException, UnicodeError):
            continue
    return _read_by_python(texts, name)


class _Numbers:
    """Numbers, one a row."""

    def __init__(self, column: pa.Array, nulls: Mask | None) -> None:
        self._has = _mask(column.is_valid())
        self._numbers = np.where(self._has, _numbers(column), 0)
        self._nulls = nulls
        self._any = bool(self._has.any())
        self.there = self._any or nulls is not None
        self.bytes = self._has.nbytes + self._numbers.nbytes + (0 if nulls is None else nulls.nbytes)

    def matches(self, comparison: Comparison) -> Mask:
        """Which rows a comparison allows. Shape: (rows,), bool."""
        found = self._has
        if self._any:
            comparison.see("number")
            found = found & self._compared(comparison)
        return _with_nulls(found, self._nulls, comparison)

    def _compared(self, comparison: Comparison) -> Mask | bool:
        value, how = comparison.value, comparison.operator
        if how == "contains":
            return False
        if how in ORDERS:
            if kind_of(value) != "number":
                return False
            border = self._border(value, up=how in (">=", "<"))
            return self._one_by_one(comparison) if border is None else ORDERS[how](self._numbers, border)
        asked = value if how in ("in", "not in") else [value]
        if any(type(item) not in (bool, int, float, str, list, dict, type(None)) for item in asked):
            return self._one_by_one(comparison)
        equal = [number for number in map(self._equal, asked) if number is not None]
        found = self._numbers == equal[0] if len(equal) == 1 else np.isin(self._numbers, _array(equal, self._numbers))
        allowed: Mask = found == (how in ("==", "in"))
        return allowed

    def _equal(self, value: Any) -> int | float | None:
        """The number of the column's own type that is equal to a value, if there can be one."""
        if not isinstance(value, (bool, int, float)):
            return None
        if self._numbers.dtype == np.int64:
            if isinstance(value, float) and not value.is_integer():
                return None
            return int(value) if -(2**63) <= value < 2**63 else None
        return float(value) if isinstance(value, float) or abs(value) <= _EXACT else None

    def _border(self, value: Any, *, up: bool) -> float | None:
        """What the numbers are to be compared with, so that types do not matter; None if that cannot be said."""
        if type(value) not in (bool, int, float):
            return None
        if self._numbers.dtype == np.int64:
            if not isinstance(value, float):
                return int(value)
            if not math.isfinite(value):
                return value
            return math.ceil(value) if up else math.floor(value)
        return float(value) if isinstance(value, float) or abs(value) <= _EXACT else None

    def _one_by_one(self, comparison: Comparison) -> Mask:
        return _allowed(comparison, self._numbers.tolist())


class _Words:
    """Texts: the distinct ones, and which of them a row has."""

    def __init__(self, column: pa.Array, nulls: Mask | None) -> None:
        encoded = column.dictionary_encode()
        self._words = encoded.dictionary
        self._codes = np.where(_mask(encoded.indices.is_valid()), _numbers(encoded.indices), -1)
        self._nulls = nulls
        self.there = bool(len(self._words)) or nulls is not None
        self.bytes = self._words.nbytes + self._codes.nbytes + (0 if nulls is None else nulls.nbytes)

    def matches(self, comparison: Comparison) -> Mask:
        """Which rows a comparison allows. Shape: (rows,), bool."""
        if len(self._words):
            comparison.see("text")
        return _with_nulls(_spread(self._compared(comparison), self._codes), self._nulls, comparison)

    def _compared(self, comparison: Comparison) -> Mask:
        value, how = comparison.value, comparison.operator
        asked = value if how in ("in", "not in") else [value]
        try:
            texts = _texts([item for item in asked if type(item) is str])
        except UnicodeError:
            return _allowed(comparison, self._words.to_pylist())
        if any(type(item) not in (bool, int, float, str, list, dict, type(None)) for item in asked):
            return _allowed(comparison, self._words.to_pylist())
        if how in _WORDS:
            if not len(texts):  # a number is in no order with a text
                return np.zeros(len(self._words), dtype=bool)
            return _mask(_WORDS[how](self._words, texts[0]))
        allowed: Mask = _mask(pc.is_in(self._words, texts)) == (how in ("==", "in"))
        return allowed


class _Objects:
    """Values of several types, lists, objects, true and false: the distinct ones, and which of them a row has."""

    def __init__(self, values: Sequence[Any], codes: npt.NDArray[np.int32], nulls: Mask | None) -> None:
        self._values = values
        self._kinds = {kind_of(value) for value in values}
        self._codes = codes
        self._nulls = nulls
        self.there = bool(values) or nulls is not None
        # A container takes some eight times the memory of its text, and every number in it an object.
        self.bytes = codes.nbytes + sum(
            8 * len(json.dumps(value)) if isinstance(value, (list, dict)) else sys.getsizeof(value) for value in values
        )

    def matches(self, comparison: Comparison) -> Mask:
        """Which rows a comparison allows. Shape: (rows,), bool."""
        found = _spread(_allowed(comparison, self._values), self._codes)
        for kind in self._kinds:
            comparison.see(kind)
        return _with_nulls(found, self._nulls, comparison)


def _truths(column: pa.Array, nulls: Mask | None) -> _Objects:
    """True and false, which are equal to 1 and 0."""
    codes = np.where(_mask(column.is_valid()), _numbers(column.cast(pa.int32())), -1)
    values = [False, True]
    seen = [values[code] for code in (0, 1) if (codes == code).any()]
    if len(seen) == 1:
        codes = np.where(codes < 0, codes, np.int32(0))
    return _Objects(seen, codes, nulls)


def _whole(column: pa.Array, nulls: Mask | None) -> _Numbers:
    return _Numbers(column, nulls)


def _fractions(column: pa.Array, nulls: Mask | None) -> _Numbers:
    found = _Numbers(column, nulls)
    if not (np.abs(found._numbers) < _EXACT).all():
        raise pa.ArrowInvalid("a whole number may have lost digits, or one is NaN, which Python finds in a list")
    return found


_TYPES: tuple[tuple[pa.DataType, Callable[[pa.Array, Mask | None], Values]], ...] = (
    (pa.int64(), _whole),
    (pa.float64(), _fractions),
    (pa.string(), _Words),
    (pa.bool_(), _truths),
)
_WORDS: dict[str, Callable[..., Any]] = {
    # Arrow compares bytes of UTF-8, which are in the order of the characters.
    ">": pc.greater,
    ">=": pc.greater_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    "contains": lambda words, text: pc.match_substring(words, text.as_py()),
}


def _read(texts: pa.StringArray, name: str, type_: pa.DataType) -> pa.Array | None:
    """The values of a name as one type; None if Arrow found another number of rows.

    Raises:
        pa.ArrowInvalid: If there are values of another type.
    """
    whole = pa.Array.from_buffers(pa.int32(), 2, [None, pa.py_buffer(np.array([0, len(texts)], np.int32))])
    lines = pc.binary_join(pa.ListArray.from_arrays(whole, texts), _texts(["\n"])[0])
    buffer = lines[0].as_buffer()
    table = pyarrow.json.read_json(
        pa.BufferReader(buffer),
        read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=buffer.size + 1),
        parse_options=pyarrow.json.ParseOptions(
            explicit_schema=pa.schema([(name, type_)]), unexpected_field_behavior="ignore"
        ),
    )
    if len(table) != len(texts):
        return None
    column = table.column(0).combine_chunks()
    return column.chunk(0) if isinstance(column, pa.ChunkedArray) else column


def _nulls(texts: pa.StringArray, column: pa.Array, name: str) -> Mask | None:
    """Rows that have the name with null; None if no row has. To Arrow they are those without the name."""
    if not column.null_count:
        return None
    may_be = pc.and_(column.is_null(), pc.match_substring(texts, "null"))
    found = [name in json.loads(text) for text in texts.filter(may_be).to_pylist()]
    if not any(found):
        return None
    nulls = _mask(may_be)
    nulls[nulls] = found
    return nulls


def _read_by_python(texts: pa.StringArray, name: str) -> _Objects:
    """Values of whatever types."""
    places: dict[tuple[type, Any], int] = {}
    values: list[Any] = []
    codes = np.full(len(texts), -1, dtype=np.int32)
    nulls = np.zeros(len(texts), dtype=bool)
    for row, text in enumerate(texts.to_pylist()):
        metadata = json.loads(text) if text else {}
        value = metadata.get(name)
        if value is None:
            nulls[row] = name in metadata
            continue
        key = (type(value), json.dumps(value) if isinstance(value, (list, dict)) else value)
        place = places.setdefault(key, len(values))
        if place == len(values):
            values.append(value)
        codes[row] = place
    return _Objects(values, codes, nulls if nulls.any() else None)


def _with_nulls(found: Mask, nulls: Mask | None, comparison: Comparison) -> Mask:
    if nulls is not None and comparison.allows({comparison.name: None}):
        return found | nulls
    return found


def _allowed(comparison: Comparison, values: Sequence[Any]) -> Mask:
    """Which values a comparison allows, one by one."""
    return np.array([comparison.allows({comparison.name: value}) for value in values], dtype=bool)


def _spread(hits: Mask, codes: npt.NDArray[np.int32]) -> Mask:
    """From distinct values to rows; -1 is a row without one."""
    return np.append(hits, False)[codes]


def _array(numbers: Sequence[float], like: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.array(numbers, dtype=like.dtype)


# Arrow's own ways from Python and numpy and back import pandas if it is installed, which takes longer than a search.


def _texts(texts: Sequence[str]) -> pa.StringArray:
    """An array of texts."""
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded)))


def _numbers(array: pa.Array) -> npt.NDArray[Any]:
    """The numbers of an array; any where there is null."""
    width = str(array.type).replace("double", "float64")
    return np.frombuffer(array.buffers()[1], dtype=width)[array.offset : array.offset + len(array)]


def _mask(array: pa.BooleanArray) -> Mask:
    """True and false, without null, as numpy has them."""
    return _numbers(array.cast(pa.uint8())).astype(bool)
