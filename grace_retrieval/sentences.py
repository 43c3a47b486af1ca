"""Rationales of so many sentences: where a sentence ends, told from the tokens as they are written.

A small policy seldom knows when it has said enough, but it ends its sentences. The rule: a sentence of at least four
tokens has ended where

    a full stop, ! or ? (with quotes or brackets behind it) is followed by white space and no small letter,
    a full stop, ! or ? as wide as a Chinese character is followed by anything but a bracket,
    or a line ends, but for one that ends in a colon.

Reasoning in <think></think> is not counted. The token that would begin the next sentence is never fed, as an
end-of-sequence token is not, so a rationale that is ended this way costs no more than one that ends by itself. "e.g.
this", "Llama-3.2" and "U.S. Army" end nothing; "Dr. Smith" does, behind three words or more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from grace_retrieval.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["SENTENCE_RULE", "SentenceWatch", "sentence_end", "sentence_watch"]

SENTENCE_RULE = 1
"""Number of the rule above, part of the identity of rationales: to be raised with whatever changes where one ends."""

LEAST_TOKENS = 4
"""Fewest tokens of a sentence, white space aside: "1." and "Dr." are none."""

_CLOSED = re.compile(r"[.!?…।؟۔][\"'”’)\]»*_`]*$")  # noqa: RUF001 - those are the characters
_INITIAL = re.compile(r"(?:^|[\s.(])[A-Z]\.$")
_CLOSED_WIDE = re.compile(r"[。！？][」』”’）]*$")  # noqa: RUF001
_BRACKET_WIDE = re.compile(r"[」』”’）]")  # noqa: RUF001

_BEGIN, _END = (f"<{mark}think>" for mark in ("", "/"))
"""What stands around reasoning."""

_BYTES, _MOST_BYTES = "\ufffd", 4
"""What a tokenizer makes of bytes that are no character yet, and how many a character may have."""

_pieces: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[int, ...], str]] = WeakKeyDictionary()


class SentenceWatch:
    """Counts the sentences of a rationale as it is written.

    Args:
        tokenizer: Tokenizer of the policy.
        most: Most sentences; 1 or more.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, most: int) -> None:
        self._tokenizer, self._left = tokenizer, most
        self._text, self._tokens = "", 0
        self._begun: tuple[int, ...] = ()  # tokens of a character that has not all its bytes

    def ends(self, token: int) -> bool:
        """Take the next token.

        Args:
            token: Its id.

        Returns:
            Whether the rationale is complete without it: it would begin one sentence too many.
        """
        tokens, first = (*self._begun, token), not self._begun
        piece = _piece(self._tokenizer, tokens)
        self._begun = tokens if piece.endswith(_BYTES) and len(tokens) < _MOST_BYTES else ()
        # Later tokens of a character end nothing: the first has been written.
        if first and self._tokens >= LEAST_TOKENS and _BEGIN not in self._text and _ended(self._text, piece):
            self._left -= 1
            self._text, self._tokens = "", 0
        self._text += "" if self._begun else piece
        self._tokens += bool(piece.strip())
        if _END in self._text:
            self._text, self._tokens = "", 0
        return self._left == 0


def sentence_watch(tokenizer: PreTrainedTokenizerBase | None, most: int) -> SentenceWatch | None:
    """A watch for one rationale, if sentences are counted.

    Args:
        tokenizer: Tokenizer of the policy.
        most: Most sentences; 0 if they are not.

    Raises:
        InputError: If they are, and there is no tokenizer.
    """
    if not most:
        return None
    if tokenizer is None:
        raise InputError(
            f"max_sentences={most}: the engine was made without a tokenizer, so sentences cannot be "
            "told. Give it one, or max_sentences=0."
        )
    return SentenceWatch(tokenizer, most)


def sentence_end(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[int], most: int) -> int | None:
    """Where a rationale that was written without a watch is to be cut.

    Args:
        tokenizer: Tokenizer of the policy.
        tokens: Its token ids.
        most: Most sentences; 1 or more.

    Returns:
        How many of its first tokens to keep; None if there is no sentence too many.
    """
    watch = SentenceWatch(tokenizer, most)
    return next((place for place, token in enumerate(tokens) if watch.ends(token)), None)


def _ended(text: str, piece: str) -> bool:
    """Whether a sentence has ended between what was written of it and what comes now."""
    said = text.rstrip()
    left = text[len(said) :]
    if "\n" in left or (piece[:1].isspace() and "\n" in piece):
        return not said.endswith(":")
    if left or piece[:1].isspace():
        following = piece.lstrip()[:1]  # nothing yet, where white space is a token of its own
        return bool(following) and not following.islower() and bool(_CLOSED.search(said)) and not _INITIAL.search(said)
    return _CLOSED_WIDE.search(said) is not None and not _BRACKET_WIDE.match(piece)


def _piece(tokenizer: PreTrainedTokenizerBase, tokens: tuple[int, ...]) -> str:
    """What tokens add to a text: behind others, as some tokenizers take the space from the first word."""
    known = _pieces.setdefault(tokenizer, {})
    if tokens not in known:
        once, twice = (
            str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
            for ids in (tokens, tokens * 2)
        )
        known[tokens] = twice[len(once) :]
    return known[tokens]
