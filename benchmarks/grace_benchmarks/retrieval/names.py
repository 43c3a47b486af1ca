"""Names of ways of embedding, and of models in rows."""

from __future__ import annotations

import os
from typing import Literal

from grace_retrieval.rationale import RationaleMode

__all__ = ["DEFAULT_COLUMNS", "LEXICAL", "MODES", "Column", "model_name"]

Column = Literal[
    "bm25", "text", "echo", "rationale", "crossed", "hybrid", "bm25-documents", "bm25-queries", "bm25-both"
]
"""BM25; the model by MODES; BM25 and the model fused by rank; BM25 by LEXICAL."""

DEFAULT_COLUMNS: tuple[Column, ...] = ("bm25", "text", "rationale", "hybrid")

MODES: dict[str, tuple[RationaleMode, RationaleMode]] = {
    "text": (False, False),
    "echo": ("echo", "echo"),
    "rationale": (True, True),
    "crossed": (True, False),
}
"""What is embedded behind documents and behind queries. Crossed is what an interactive system can afford: rationales of
documents are written ahead of time, and a query waits for none."""

LEXICAL: dict[str, tuple[bool, bool]] = {
    "bm25-documents": (True, False),
    "bm25-queries": (False, True),
    "bm25-both": (True, True),
}
"""Whether BM25 is shown the model's rationales behind documents, and behind queries."""


def model_name(name: str) -> str:
    """What a model is called in rows: its folder's name, without the way to it.

    Example:
        >>> model_name("grace-nano")
        'grace-nano'
    """
    return os.path.basename(os.path.normpath(name)) if os.path.isdir(name) else name
