"""Explanations as HTML: self-contained, escaped, and fetching nothing."""

from __future__ import annotations

from functools import cache
from typing import Any

import jinja2

from grace_retrieval.explain.explained import PARTS, ExplainedScore, LeftOut, Part, Side

__all__ = ["environment", "explanation_body", "explanation_fragment", "explanation_page", "explanation_view"]

STRONG = 0.5
"""Words are underlined if their weight is at least this part of the side's largest."""


@cache
def environment() -> jinja2.Environment:
    """The templates; whatever is put into them is escaped."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("grace_retrieval.explain"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )


def explanation_page(explanation: ExplainedScore) -> str:
    """A whole page."""
    title = f"{explanation.query.text[:60]} · {explanation.score:.4f}"
    return environment().get_template("page.jinja").render(view=explanation_view(explanation), title=title)


def explanation_fragment(explanation: ExplainedScore) -> str:
    """A fragment with its own style, to be put into a page or notebook."""
    return environment().get_template("fragment.jinja").render(view=explanation_view(explanation))


def explanation_body(explanation: ExplainedScore) -> str:
    """Both sides, their tables and what the colours mean, for a page that has the style and script already."""
    macros: Any = environment().get_template("explanation.jinja").module
    return str(macros.body(explanation_view(explanation))) + str(macros.legend())


def explanation_view(explanation: ExplainedScore) -> dict[str, Any]:
    """What the templates show of an explanation: strings and numbers only."""
    query, document = explanation.query, explanation.document
    left_out = [
        (name, found)
        for name, found, there in (
            ("the document's rationale", explanation.without_document_rationale, document.rationale.text),
            ("the query's rationale", explanation.without_query_rationale, query.rationale.text),
            ("both rationales", explanation.without_rationales, document.rationale.text and query.rationale.text),
        )
        if there
    ]
    return {
        "model": explanation.model_name,
        "dimension": explanation.dimension,
        "score": f"{explanation.score:.4f}",
        "id": explanation.id,
        "title": explanation.title,
        "snippet": (document.text.strip().splitlines() or [""])[0][:120],
        "rank": explanation.rank,
        "ranked": explanation.documents > 1,
        "documents": explanation.documents,
        "query": _side(query),
        "document": _side(document),
        "left_out": [_left_out(name, found, explanation) for name, found in left_out],
        "pairs": [
            {
                "query": query.tokens[pair.query],
                "document": document.tokens[pair.document],
                "contribution": _signed(pair.contribution),
                "weight": _signed(pair.weight),
            }
            for pair in explanation.pairs
        ],
    }


def _left_out(name: str, found: LeftOut, explanation: ExplainedScore) -> dict[str, Any]:
    return {
        "name": name,
        "score": f"{found.score:.4f}",
        "change": f"{found.score - explanation.score:+.4f}",
        "rank": found.rank,
    }


def _side(side: Side) -> dict[str, Any]:
    shares = side.shares
    whole = sum(max(share, 0.0) for share in shares.values()) or 1.0
    return {
        "blank": not side.tokens,
        "cut": side.text_end < len(side.text),
        "rationale": side.rationale.text,
        "written_by_model": side.written_by_model,
        "rationale_truncated": side.rationale.truncated,
        "pieces": {part: _pieces(side, part) for part in ("text", "rationale")},
        "shares": [
            {"name": part, "value": f"{shares[part]:.4f}", "width": round(100 * max(shares[part], 0.0) / whole, 2)}
            for part in PARTS
        ],
    }


def _pieces(side: Side, part: Part) -> list[dict[str, Any]]:
    """A part's characters in order: words, and what stands between them."""
    text = side.text if part == "text" else side.rationale.text
    shown = side.text_end if part == "text" else len(text)
    most = max((abs(word.weight) for word in side.words), default=0.0) or 1.0
    pieces: list[dict[str, Any]] = []
    done = 0
    for place, word in enumerate(side.words):
        if word.part != part or not text[word.start : word.end].strip():
            continue
        if done < word.start:
            pieces.append({"word": None, "cut": False, "text": text[done : word.start]})
        done = word.end
        strength = word.weight / most
        pieces.append(
            {
                "word": place,
                "text": text[word.start : word.end],
                "classes": (" up" if strength > 0 else " down") + (" strong" if abs(strength) >= STRONG else ""),
                "strength": f"{abs(strength):.2f}",
                "contribution": _signed(word.contribution),
                "weight": _signed(word.weight),
                "partners": " ".join(str(partner.word) for partner in word.partners),
            }
        )
    for start, end, cut in ((done, shown, False), (shown, len(text), True)):
        if start < end:
            pieces.append({"word": None, "cut": cut, "text": text[start:end]})
    return pieces


def _signed(number: float) -> str:
    return f"{number:+.4f}" if abs(number) >= 0.001 else f"{number:+.2e}"
