"""Rationale: what a policy wrote about a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from grace_retrieval.errors import InputError

__all__ = ["Rationale", "RationaleMode", "check_mode"]

RationaleMode = bool | Literal["echo"]
"""What is embedded behind a text: True a rationale that the policy writes, False nothing, "echo" the text again.

An echo costs a second reading of the text and no writing (Springer et al. 2024, arXiv 2402.15449): every token of it
has seen the whole text. It is the baseline that says whether writing is worth its price.
"""

_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(frozen=True, kw_only=True)
class Rationale:
    """What a policy wrote about a text. It was written by a model: it is no quotation and may be wrong.

    Args:
        text: The rationale as it was written, whole.
        token_ids: Its tokens, end-of-sequence token left out. Embedding with these, rather than with `text`
            tokenised again, gives the very same vector.
        truncated: Whether it was ended before the policy did: by the token budget, or because it went in circles.
        text_truncated: Whether the text it is about had to be shortened.
        circled: Whether it went in circles, and was ended and cut back to before that.

    Example:
        >>> r = Rationale(text="<think> Tides follow the moon. </think> On ocean tides.", token_ids=(1, 2),
        ...               truncated=False, text_truncated=False)
        >>> r.reasoning, r.summary
        ('Tides follow the moon.', 'On ocean tides.')
    """

    text: str
    token_ids: tuple[int, ...]
    truncated: bool
    text_truncated: bool
    circled: bool = False

    @property
    def reasoning(self) -> str:
        """What stands inside <think></think>; all of it if the tag was never closed; "" without a tag."""
        head, closed, _ = self.text.partition(_CLOSE)
        before, opened, behind = head.partition(_OPEN)
        if opened:
            return behind.strip()
        # A template may open the tag itself, in the assistant's header.
        return before.strip() if closed else ""

    @property
    def summary(self) -> str:
        """What stands behind </think>: the statement of what the text is about. All of it without tags."""
        _, closed, behind = self.text.partition(_CLOSE)
        if closed:
            return behind.strip()
        return "" if _OPEN in self.text else self.text.strip()

    @property
    def parts(self) -> dict[str, str]:
        """What it consists of, by name: reasoning and summary, or without tags the rationale as it is."""
        if _OPEN in self.text or _CLOSE in self.text:
            return {"reasoning": self.reasoning, "summary": self.summary}
        return {"rationale": self.text.strip()}

    @property
    def repeats(self) -> bool:
        """Whether it goes in circles: the same words, up to twelve of them, three times in a row or more.

        True as well if it was cut back to before that, so that the words no longer show it (`circled`).

        Example:
            >>> def written(text): return Rationale(text=text, token_ids=(), truncated=False, text_truncated=False)
            >>> written("Tides that had had had to be.").repeats, written("Water for Rome for Rome.").repeats
            (True, False)
        """
        if self.circled:
            return True
        words = self.text.split()
        for length in range(1, 13):
            run = 0
            for place in range(length, len(words)):
                run = run + 1 if words[place] == words[place - length] else 0
                if run >= 2 * length:
                    return True
        return False

    def __str__(self) -> str:
        """The rationale as it was written."""
        return self.text


def check_mode(value: Any) -> RationaleMode:
    """Refuse what is no RationaleMode.

    Raises:
        InputError: If it is neither True, False nor "echo".
    """
    if value is True or value is False or value == "echo":
        mode: RationaleMode = value
        return mode
    raise InputError(f"rationale={value!r}: give True (written), False (the text alone) or 'echo' (the text twice).")
