"""Text cleaning and sentence cutting, shared by every source of the corpus."""

from __future__ import annotations

import re

__all__ = [
    "clean_explanation",
    "clean_textbook",
    "detokenize",
    "first_sentences",
    "normalize_spaces",
    "split_sentences",
]

_ABBREVIATIONS = frozenset(
    "e.g i.e etc vs cf al fig figs eq eqs dr mr mrs ms prof st no vol u.s u.k approx resp sec inc jr".split()
)
_BOUNDARY = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])")
_BULLET = re.compile(r"(?:^|\s)(?:[•▪●]|\(?\d{1,2}[.)]|[-*])\s+\S")
_MARKUP = re.compile(r"[`{}|#<>]|https?://|\\[a-zA-Z]+")


def normalize_spaces(text: str) -> str:
    """Replace every run of white space by one space and strip the ends."""
    return " ".join(text.split())


def split_sentences(text: str) -> list[str]:
    """Cut `text` into sentences; abbreviations, initials and decimals do not end one.

    Joining the result with single spaces gives the text back, up to white space.
    """
    sentences: list[str] = []
    start = 0
    for match in _BOUNDARY.finditer(text):
        words = text[start : match.start()].split()
        last = words[-1].strip("\"'()[]").rstrip(".").lower() if words else ""
        is_initial = len(last) == 1 and last.isalpha() and text[match.start() - 1] == "."
        if last in _ABBREVIATIONS or is_initial:
            continue
        sentences.append(text[start : match.end()].strip())
        start = match.end()
    tail = text[start:].strip()
    if tail:
        sentences.append(tail)
    return sentences


def first_sentences(text: str, max_words: int, max_sentences: int = 2) -> str | None:
    """Take whole sentences from the start while they fit.

    Args:
        text: The text to cut.
        max_words: Upper bound on white-space separated words of the result.
        max_sentences: Upper bound on sentences.

    Returns:
        The longest allowed run of first sentences, or None when the first alone is too long or does not end.
    """
    taken: list[str] = []
    words = 0
    for sentence in split_sentences(text)[:max_sentences]:
        words += len(sentence.split())
        if words > max_words:
            break
        taken.append(sentence)
    result = " ".join(taken)
    return result if result.endswith((".", "!", "?", ".)", '."', ".'")) else None


def clean_explanation(text: str) -> str | None:
    """Clean one field of an explanation written by a language model.

    Asterisks of Markdown emphasis go and white space is normalised. A final full stop is added when missing.

    Returns:
        The cleaned text, or None when it is empty or holds a list, markup or much non-English text.
    """
    text = normalize_spaces(text.replace("**", "").replace("\u00a0", " "))
    if len(text) < 12 or _BULLET.search(text) or _MARKUP.search(text) or "*" in text:
        return None
    if sum(ord(char) > 127 for char in text) > 0.03 * len(text):
        return None
    return text if text[-1] in ".!?" else text.rstrip(",;: ") + "."


def clean_textbook(text: str) -> str:
    """Remove headings and learning objectives' boilerplate from a textbook section; keep paragraphs."""
    paragraphs = (normalize_spaces(part) for part in text.split("\n\n"))
    kept = (
        part for part in paragraphs if len(part) > 60 and not part.startswith(("#", "By the end of this section", "|"))
    )
    return "\n\n".join(kept)


def detokenize(text: str) -> str:
    """Undo the Penn-Treebank style spacing of Natural Questions' paragraphs."""
    text = text.replace("``", '"').replace("''", '"')
    text = re.sub(r" ([,.;:!?%)\]])", r"\1", text)
    text = re.sub(r"([(\[$]) ", r"\1", text)
    text = re.sub(r" ('s|'t|'re|'ve|'m|'ll|'d|n't)\b", r"\1", text)
    text = re.sub(r'" ([^"]*?) ?"', r'"\1"', text)
    text = re.sub(r"(\w) - (\w)", r"\1-\2", text)
    return normalize_spaces(text.replace(" -- ", " - "))
