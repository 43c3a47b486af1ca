"""What is known of a score: the tokens of both sides, what they contribute, and what would be without rationales."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from grace_retrieval.rationale import Rationale

__all__ = ["PARTS", "ExplainedScore", "LeftOut", "Part", "Partner", "Side", "TokenPair", "Word"]

Part = Literal["text", "template", "rationale"]
PARTS: tuple[Part, ...] = ("text", "template", "rationale")


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
class ExplainedScore:
    """Why a document got its score for a query; `Explanation` shows it.

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
