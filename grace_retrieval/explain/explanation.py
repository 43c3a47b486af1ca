"""Explanation: why a document got its score for a query, and how to look at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType

from grace_retrieval.explain.explained import ExplainedScore, LeftOut, Side

__all__ = ["Explanation"]

SCHEMA_VERSION = 1
"""Version of what `Explanation.to_dict` gives; it grows when a field changes its meaning or goes."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Explanation(ExplainedScore):
    """Why a document got its score for a query: contributions of tokens, which add up to the score exactly.

    Print it, open `to_html()` in a browser, or show it in a notebook.

    Attributes:
        model: Name of the model.
        dimension: Dimensions that were compared; fewer than the model's with `truncate_dim`.
        score: Cosine of the two embeddings, as `embedder.similarity` gives it.
        query: The query's tokens.
        document: The document's tokens.
        pairs: Pairs of tokens that stand out most, by weight; tokens of text and rationale that belong to words.
        id: Id of the document, if it has one.
        title: Title of the document, if it has one.
        rank: Rank of the document among those explained together, from 1. Equal scores share a rank.
        documents: How many documents were explained together.
        without_document_rationale: With the document's text alone; the other documents keep their rationales.
        without_query_rationale: With the query's text alone, for all documents.
        without_rationales: With the texts alone, of the query and of all documents.
    """

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values; docs/explanations.md describes the fields."""

        def left_out(found: LeftOut) -> dict[str, Any]:
            return {"score": found.score, "rank": found.rank}

        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "dimension": self.dimension,
            "score": self.score,
            "id": self.id,
            "title": self.title,
            "rank": self.rank,
            "documents": self.documents,
            "without_document_rationale": left_out(self.without_document_rationale),
            "without_query_rationale": left_out(self.without_query_rationale),
            "without_rationales": left_out(self.without_rationales),
            "query": _side(self.query),
            "document": _side(self.document),
            "pairs": [
                {
                    "query": pair.query,
                    "document": pair.document,
                    "contribution": pair.contribution,
                    "weight": pair.weight,
                }
                for pair in self.pairs
            ],
        }

    def to_html(self, *, page: bool = True) -> str:
        """The explanation as HTML that needs no server and fetches nothing; everything in it is escaped.

        Args:
            page: Whether to make a whole page; otherwise a fragment to put into one.
        """
        from grace_retrieval.explain.html import explanation_fragment, explanation_page

        return explanation_page(self) if page else explanation_fragment(self)

    def _repr_html_(self) -> str:
        """What notebooks show."""
        return self.to_html(page=False)

    def __rich__(self) -> RenderableType:
        """What rich prints, in colour where there is colour."""
        from grace_retrieval.explain.terminal import render

        return render(self)

    def __str__(self) -> str:
        """The explanation as plain text."""
        from grace_retrieval.explain.terminal import plain_text

        return plain_text(self)

    def __repr__(self) -> str:
        """One line."""
        name = self.title or self.id or self.document.text
        query, document = (text if len(text) <= 40 else f"{text[:39]}…" for text in (self.query.text, name))
        return f"Explanation(score={self.score:.4f}, query={query!r}, document={document!r})"


def _side(side: Side) -> dict[str, Any]:
    return {
        "text": side.text,
        "text_end": side.text_end,
        "rationale": side.rationale.text,
        "rationale_truncated": side.rationale.truncated,
        "written_by_model": side.written_by_model,
        "shares": side.shares,
        "tokens": [
            {
                "text": text,
                "part": part,
                "start": None if part == "template" else start,
                "end": None if part == "template" else end,
                "contribution": contribution,
                "weight": weight,
            }
            for text, part, (start, end), contribution, weight in zip(
                side.tokens,
                side.parts,
                side.spans.tolist(),
                side.contributions.tolist(),
                side.weights.tolist(),
                strict=True,
            )
        ],
        "words": [
            {
                "part": word.part,
                "start": word.start,
                "end": word.end,
                "first_token": word.first,
                "stop_token": word.stop,
                "contribution": word.contribution,
                "weight": word.weight,
                "partners": [{"word": partner.word, "weight": partner.weight} for partner in word.partners],
            }
            for word in side.words
        ],
    }
