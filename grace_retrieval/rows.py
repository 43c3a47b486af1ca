"""What comes of texts: a row of the pipeline for one, vectors and rationales of an embedder for many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from grace_retrieval.cache import CachedRationale
from grace_retrieval.prompt import RenderedText
from grace_retrieval.rationale import Rationale

__all__ = ["EncodedTexts", "RationaleRow", "Role"]

Role = Literal["query", "document"]


@dataclass(frozen=True, kw_only=True, eq=False)
class RationaleRow:
    """What came of a text.

    Attributes:
        text: What the policy wrote; "" if nothing was to be written.
        token_ids: Its tokens, end-of-sequence token left out.
        vector: Mean of the last hidden states over text and rationale, not normalised; zeros for a blank text.
            Shape: (hidden_size,), float32.
        truncated: Whether the rationale was ended before the policy did: by the token budget, or because it went in
            circles.
        prompt: The text as the policy saw it.
        end_token: The token that ended the rationale, where it was written just now and the policy tells.
        cached: Whether the row came from the cache.
        circled: Whether the rationale went in circles and was cut back to before that.
    """

    text: str
    token_ids: tuple[int, ...]
    vector: npt.NDArray[np.float32]
    truncated: bool
    prompt: RenderedText
    end_token: int | None = None
    cached: bool = False
    circled: bool = False

    @property
    def rationale(self) -> Rationale:
        """The rationale as users see it."""
        return Rationale(
            text=self.text,
            token_ids=self.token_ids,
            truncated=self.truncated,
            text_truncated=self.prompt.truncated,
            circled=self.circled,
        )

    @classmethod
    def of(
        cls, row: CachedRationale, prompt: RenderedText, end_token: int | None = None, *, cached: bool = False
    ) -> RationaleRow:
        """A row of the cache, or one that goes there, for a text as it was shown."""
        return cls(
            text=row.text,
            token_ids=row.token_ids,
            vector=row.vector,
            truncated=row.finish_reason != "stop",
            prompt=prompt,
            end_token=end_token,
            cached=cached,
            circled=row.finish_reason == "repeat",
        )

    @classmethod
    def blank(cls, prompt: RenderedText, hidden_size: int) -> RationaleRow:
        """The row of a blank text: nothing is written about it, and its vector is zeros."""
        vector = np.zeros(hidden_size, dtype=np.float32)
        return cls(text="", token_ids=(), vector=vector, truncated=False, prompt=prompt)


@dataclass(frozen=True, kw_only=True)
class EncodedTexts:
    """What an embedder made of texts, in their order.

    Attributes:
        vectors: Shape: (texts, dim), float32, of length 1; zeros for blank texts.
        rationales: One a text; empty ones if none were to be written.
    """

    vectors: npt.NDArray[np.float32]
    rationales: list[Rationale]
