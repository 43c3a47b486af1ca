"""Explanation: why a document got its score for a query, and how to look at it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rich.console import RenderableType

from grace_retrieval.rationale import Rationale

__all__ = ["Explanation", "LeftOut", "Partner", "Side", "TokenPair", "Word"]

Part = Literal["text", "template", "rationale"]
PARTS: tuple[Part, ...] = ("text", "template", "rationale")

SCHEMA_VERSION = 1
"""Version of what `Explanation.to_dict` gives; it grows when a field changes its meaning or goes."""


@dataclass(frozen=True, kw_only=True)
class Partner:
    """A word of the other side that a word agrees with.

    Attributes:
        word: Place in the other side's `words`.
        weight: Contribution of the pair, less what either contributes with the other side's average token.
    """

    word: int
    weight: float


@dataclass(frozen=True, kw_only=True)
class Word:
    """Tokens that make a word together, or a punctuation mark.

    Attributes:
        part: "text" or "rationale"; the template has no words.
        start: First character in the text or the rationale.
        end: The character behind the last.
        first: First token, a place in the side's arrays.
        stop: The token behind the last.
        contribution: Sum over its tokens.
        weight: Sum over its tokens.
        partners: Words of the other side it agrees with most, strongest first; none for punctuation.
    """

    part: Part
    start: int
    end: int
    first: int
    stop: int
    contribution: float
    weight: float
    partners: tuple[Partner, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """A query or a document, token by token: only tokens that are pooled into the embedding.

    Attributes:
        text: The text, as the embedder was given it.
        text_end: Characters of it that the model was shown; fewer than there are if it was too long.
        rationale: What is embedded with it; empty if there is none.
        written_by_model: Whether a model wrote the rationale, rather than the caller.
        tokens: Characters of each token. Several tokens may make one character: then each has it. Shape: (tokens,).
        parts: Where each token is from: "text", "template" or "rationale". Shape: (tokens,).
        spans: First character of each token in its part and the one behind its last; -1 for the template's.
            Shape: (tokens, 2), int64.
        contributions: What each token contributes; adds up to the score. Shape: (tokens,), float64.
        weights: Contributions less their baseline, for display; adds up to 0. Shape: (tokens,), float64.
        words: Tokens of text and rationale put together to words, in order.
    """

    text: str
    text_end: int
    rationale: Rationale
    written_by_model: bool
    tokens: tuple[str, ...]
    parts: tuple[Part, ...]
    spans: npt.NDArray[np.int64]
    contributions: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]
    words: tuple[Word, ...]

    @property
    def shares(self) -> dict[Part, float]:
        """What text, template and rationale contribute; adds up to the score. A share is not an effect."""
        return {part: float(self.contributions[[p == part for p in self.parts]].sum()) for part in PARTS}

    def word_text(self, place: int) -> str:
        """Characters of one of `words`."""
        word = self.words[place]
        return (self.text if word.part == "text" else self.rationale.text)[word.start : word.end]


@dataclass(frozen=True, kw_only=True)
class TokenPair:
    """A token of the query and one of the document.

    Attributes:
        query: Place among the query's tokens.
        document: Place among the document's tokens.
        contribution: The pair's term in the sum that is the score.
        weight: Contribution less what either token contributes with the other side's average token.
    """

    query: int
    document: int
    contribution: float
    weight: float


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What would be found without a rationale.

    Attributes:
        score: The score without it.
        rank: The document's rank with that score, among the documents that were explained together.
    """

    score: float
    rank: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
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

    model: str
    dimension: int
    score: float
    query: Side
    document: Side
    pairs: tuple[TokenPair, ...]
    id: str | None
    title: str | None
    rank: int
    documents: int
    without_document_rationale: LeftOut
    without_query_rationale: LeftOut
    without_rationales: LeftOut

    @property
    def model_name(self) -> str:
        """The model's name, without the folders in front of it."""
        return os.path.basename(self.model) if os.path.isabs(self.model) else self.model

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
