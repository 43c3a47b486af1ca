"""Griffe takes "Examples:" for code that is tried out, and "Example:", which is what ours say, for a note."""

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["Examples"]


class Examples(griffe.Extension):
    """Reads "Example:" as "Examples:"."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename the section of an object's docstring.

        Args:
            obj: What was found in the source.
            **kwargs: What else Griffe tells.
        """
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
