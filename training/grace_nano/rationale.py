"""Rationales: their exact form, and how they are kept short without cutting a sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from grace_nano.cleaning import clean_explanation, split_sentences
from grace_nano.tokenizer import IM_END, THINK_CLOSE, THINK_OPEN

__all__ = ["ChatExample", "RationaleParts", "copied_share", "format_rationale", "trim_rationale"]

_WORD = re.compile(r"[a-z][a-z0-9]{3,}")
_COMMON = frozenset(
    "this that these those with from into onto their they them then than have been were which while where "
    "when what paper work works study studies method methods model models approach approaches existing such "
    "using used uses also more most many both each between through across over under without within there "
    "need needs needed".split()
)


@dataclass(frozen=True)
class RationaleParts:
    """Source material of a rationale.

    Attributes:
        thoughts: What goes inside the think tags, most important first; each is cut to whole sentences.
        statement: What follows the tags.
    """

    thoughts: tuple[str, ...]
    statement: str


@dataclass(frozen=True)
class ChatExample:
    """A text, its rationale's parts, and its role: `default`, `query` or `document`."""

    role: str
    text: str
    parts: RationaleParts


def format_rationale(thoughts: str, statement: str) -> str:
    """Put a rationale into its form, end token included.

    Example:
        >>> format_rationale("It asks why.", "The sky is blue.")
        '<think> It asks why. </think> The sky is blue.<|im_end|>'
    """
    return f"{THINK_OPEN} {thoughts} {THINK_CLOSE} {statement}{IM_END}"


def trim_rationale(
    parts: RationaleParts, count_tokens: Callable[[str], int], target_tokens: int, max_tokens: int
) -> str | None:
    """Choose the fullest version of a rationale that is short enough.

    Tried in this order: the first sentence of every thought with two and then one sentence of the statement,
    then the same with the last thoughts left out, each against the target; at last all of them against the
    maximum, shortest first.

    Args:
        parts: The material; empty or unclean thoughts are left out.
        count_tokens: Counts the tokens of a rationale.
        target_tokens: Wanted upper bound.
        max_tokens: Strict upper bound.

    Returns:
        The formatted rationale, or None when no version fits or the material is unclean.
    """
    cleaned = [thought for thought in map(clean_explanation, parts.thoughts) if thought]
    statement = clean_explanation(parts.statement)
    if not cleaned or not statement:
        return None
    firsts = [split_sentences(thought)[0] for thought in cleaned]
    sentences = split_sentences(statement)
    versions: list[str] = []
    for kept in range(len(firsts), 0, -1):
        for size in (2, 1) if len(sentences) > 1 else (1,):
            versions.append(format_rationale(" ".join(firsts[:kept]), " ".join(sentences[:size])))
    counts = [count_tokens(version) for version in versions]
    for version, count in zip(versions, counts, strict=True):
        if count <= target_tokens:
            return version
    shortest = min(range(len(versions)), key=counts.__getitem__)
    return versions[shortest] if counts[shortest] <= max_tokens else None


def copied_share(rationale: str, text: str) -> float:
    """Share of the rationale's content words that also occur in the text (by their first five letters).

    Example:
        >>> copied_share("Networks learn embeddings.", "A network that learns")
        0.6666666666666666
    """
    words = {word[:5] for word in _WORD.findall(rationale.lower()) if word not in _COMMON} - {"think"}
    if not words:
        return 1.0
    known = {word[:5] for word in _WORD.findall(text.lower())}
    return len(words & known) / len(words)
