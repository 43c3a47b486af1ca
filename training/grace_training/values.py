"""Values of a recipe, checked by the annotations of whatever takes them."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import fields
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from grace_retrieval.errors import InputError
from grace_retrieval.near import did_you_mean

__all__ = ["annotations_of", "read_mapping", "read_value"]

_WORDS: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    type(None): "null",
}


def annotations_of(kind: type) -> dict[str, Any]:
    """What a dataclass is made with: name → annotation; Any where only type checkers know it."""
    return {field.name: _annotation(kind, field.name) for field in fields(kind) if field.init}


def _annotation(kind: type, name: str) -> Any:
    for owner in kind.__mro__:
        if (written := vars(owner).get("__annotations__", {}).get(name)) is not None:
            holder = type("holder", (), {"__annotations__": {name: written}})
            try:
                return get_type_hints(holder, globalns=vars(sys.modules[owner.__module__]))[name]
            except NameError:
                return Any
    return Any


def read_mapping(where: str, content: object, known: Mapping[str, Any], pointer: str = "") -> dict[str, Any]:
    """Values of a mapping, as their annotations have them.

    Args:
        where: What it is, for messages: recipe and key.
        content: The mapping.
        known: Names that it may hold → annotations.
        pointer: Where all names can be read; they are listed where this is empty.

    Returns:
        The values; a number that YAML took for a string is a number.

    Raises:
        InputError: If it is no mapping, a name is unknown or a value is of another kind; with names that are near.
    """
    if not isinstance(content, Mapping):
        raise InputError(f"{where}={content!r}: give a mapping.")
    found: dict[str, Any] = {}
    for name, value in content.items():
        if name not in known:
            listed = pointer or f"There are {', '.join(sorted(known))}."
            raise InputError(f"{where}.{name}={value!r}: no such option.{did_you_mean(str(name), known)} {listed}")
        found[name] = read_value(f"{where}.{name}", value, known[name])
    return found


def read_value(where: str, value: Any, annotation: Any) -> Any:
    """A value as an annotation has it.

    Args:
        where: What it is, for messages: recipe and key.
        value: The value.
        annotation: A type; one that cannot be checked here is left to whatever takes the value.

    Raises:
        InputError: If it is of another kind.
    """
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except (PydanticSchemaGenerationError, PydanticUserError):
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise InputError(f"{where}={value!r}: give {_in_words(annotation)}.") from error


def _in_words(annotation: Any) -> str:
    """What an annotation allows: "a whole number or null"."""
    if annotation in _WORDS:
        return _WORDS[annotation]
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_in_words(part) for part in inner))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(repr(member.value) for member in annotation)
    kind = origin or annotation
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "a mapping"
    if isinstance(kind, type) and issubclass(kind, Sequence | set):
        return "a list" + (f" ({_in_words(inner[0])} each)" if inner and inner[0] in _WORDS else "")
    return getattr(kind, "__name__", str(kind))
