"""Explanations: the score of a document as a sum over tokens, exactly. Begin with `GraceEmbedder.explain`."""

from __future__ import annotations

from grace_retrieval.explain.explained import LeftOut, Partner, Side, TokenPair, Word
from grace_retrieval.explain.explanation import Explanation

__all__ = ["Explanation", "LeftOut", "Partner", "Side", "TokenPair", "Word"]
