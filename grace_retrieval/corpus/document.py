"""Document: a text with its id, title and metadata."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Document", "join_title", "key_beside"]

TITLE_BREAK = "\n\n"


def join_title(title: str | None, text: str) -> str:
    r"""What an embedder is shown of a document: title, blank line, text; blank parts are left out.

    Example:
        >>> join_title("Tides", "They follow the moon.")
        'Tides\n\nThey follow the moon.'
    """
    parts = [part for part in (title, text) if part and part.strip()]
    return TITLE_BREAK.join(parts) if parts else text


def key_beside(metadata: Collection[str], name: str) -> str:
    """What something of ours is called among metadata, whose own names stay what they are.

    Args:
        metadata: Names that are there.
        name: Name of ours, such as "rationale".

    Example:
        >>> key_beside({"year": 1999}, "score"), key_beside({"score": 7}, "score")
        ('score', 'grace_score')
    """
    return f"grace_{name}" if name in metadata else name


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document of a corpus.

    Attributes:
        id: Its id, unique in an index.
        text: Its text, without the title.
        title: Its title, if it has one.
        metadata: What else is known about it; JSON values.
        vector: Its vector, if it brings one. Shape: (dim,), float32.
        source: Where it was read, for messages.
    """

    id: str
    text: str
    title: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    vector: npt.NDArray[np.float32] | None = field(default=None, compare=False)
    source: str = field(default="", compare=False)

    @property
    def embedded_text(self) -> str:
        """What an embedder is shown."""
        return join_title(self.title, self.text)
