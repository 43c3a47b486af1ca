"""Names of ways of embedding, and of models in rows."""

from __future__ import annotations

import os
from typing import Literal

__all__ = ["Column", "model_name"]

Column = Literal["bm25", "text", "rationale", "hybrid"]
"""BM25; the model without a rationale; with one; BM25 and the model fused by rank."""


def model_name(name: str) -> str:
    """What a model is called in rows: its folder's name, without the way to it.

    Example:
        >>> model_name("grace-nano")
        'grace-nano'
    """
    return os.path.basename(os.path.normpath(name)) if os.path.isdir(name) else name
