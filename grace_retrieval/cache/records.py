"""One cached text: the rationale a model wrote and the vector that was pooled with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from grace_retrieval.errors import InputError

__all__ = ["CachedRationale", "FinishReason"]

FinishReason = Literal["stop", "length", "repeat"]


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedRationale:
    """What the cache keeps for one text.

    Token ids are kept beside the text because tokenising a decoded rationale again often gives other tokens.

    Attributes:
        token_ids: Tokens of the rationale without the end token; may be empty.
        text: The decoded rationale; any unicode, lone surrogates included.
        finish_reason: `"stop"` if the model ended the rationale, `"length"` if the token budget did, `"repeat"` if it
            went in circles and was cut back to before that.
        vector: Pooled mean before normalisation; read-only in rows from a cache. Shape: (hidden,), float32.

    Raises:
        InputError: A field has the wrong type, shape or dtype.

    Example:
        >>> import numpy as np
        >>> row = CachedRationale(
        ...     token_ids=(5, 6), text="why", finish_reason="stop", vector=np.zeros(4, dtype=np.float32)
        ... )
        >>> row.token_ids
        (5, 6)
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    vector: np.ndarray

    def __post_init__(self) -> None:
        """Check every field, so that nothing unreadable can be stored."""
        if type(self.token_ids) is not tuple:
            raise InputError(f"token_ids is {type(self.token_ids).__name__}: give a tuple of ints.")
        if not isinstance(self.text, str):
            raise InputError(f"text is {type(self.text).__name__}: give a str.")
        if self.finish_reason not in ("stop", "length", "repeat"):
            raise InputError(f"finish_reason={self.finish_reason!r}: give 'stop', 'length' or 'repeat'.")
        vector = self.vector
        if not isinstance(vector, np.ndarray):
            raise InputError(f"vector is {type(vector).__name__}: give a numpy array.")
        if vector.dtype != np.float32 or vector.ndim != 1 or vector.size == 0:
            raise InputError(
                f"vector has shape {vector.shape} and dtype {vector.dtype}: give (hidden,) of float32, as of "
                "vector.astype(numpy.float32)."
            )
