"""Which characters tokens stand for, and which tokens make a word."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenizers.decoders import DecodeStream

from grace_retrieval.markup import unwritten_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Span", "decoded_spans", "is_word", "word_groups"]

Span = tuple[int, int]
"""First character and the one behind the last."""


def decoded_spans(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> tuple[str, list[Span]]:
    """Decode tokens that were written, and say which characters each stands for.

    Args:
        tokenizer: A tokenizer of the tokenizers library.
        token_ids: Tokens; those that no text shows are left out of it and have empty spans.

    Returns:
        The text, and a span for each token. Tokens that make one character together have it all.
    """
    stream = DecodeStream()
    text, spans, waiting = "", list[Span](), 0
    unwritten = unwritten_tokens(tokenizer)
    for token in token_ids:
        piece = None if token in unwritten else stream.step(tokenizer.backend_tokenizer, token)
        if piece is None and token not in unwritten:
            waiting += 1  # part of a character
        elif piece is None:
            spans += [(len(text), len(text))] * (waiting + 1)
            waiting = 0
        else:
            spans += [(len(text), len(text) + len(piece))] * (waiting + 1)
            text, waiting = text + piece, 0
    if waiting:  # ends in part of a character, which decodes to U+FFFD
        whole = str(tokenizer.decode([token for token in token_ids if token not in unwritten]))
        end = whole[len(text) :] if whole.startswith(text) else "\ufffd"
        spans += [(len(text), len(text) + len(end))] * waiting
        text += end
    return text, spans


def word_groups(text: str, spans: Sequence[Span]) -> list[tuple[int, int]]:
    """Group tokens into words, so that every token is in one group and no character in two.

    A word is a run of letters and digits; other characters stand apart, token by token. Scripts without letter case,
    such as Chinese, may have no spaces between words and are split wherever a token ends.

    Args:
        text: The text.
        spans: Spans of its tokens, in order.

    Returns:
        First token of each group and the one behind its last.

    Example:
        >>> word_groups("Bread rises.", [(0, 2), (2, 5), (5, 9), (9, 11), (11, 12)])
        [(0, 2), (2, 4), (4, 5)]
    """
    groups: list[tuple[int, int]] = []
    end = 0
    for token, (start, stop) in enumerate(spans):
        joined = token > 0 and (
            start < end or stop <= end or (start == end and _joins(text[end - 1 : end], text[start : start + 1]))
        )
        if joined:
            groups[-1] = (groups[-1][0], token + 1)
        else:
            groups.append((token, token + 1))
        end = max(end, stop)
    return groups


def is_word(text: str) -> bool:
    """Whether a text is more than punctuation, blanks and control characters."""
    return any(unicodedata.category(character)[0] not in "PZC" for character in text)


def _joins(last: str, first: str) -> bool:
    """Whether two characters next to each other belong to one word."""
    kinds = [unicodedata.category(character) for character in last + first]
    return all(kind[0] in "LMN" for kind in kinds) and kinds != ["Lo", "Lo"]
