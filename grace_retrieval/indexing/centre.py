"""Centring fitted on a corpus: a sample of its documents, drawn while it is read once."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from grace_retrieval.corpus.document import Document
from grace_retrieval.rationale import RationaleMode

if TYPE_CHECKING:
    from grace_retrieval.embedder import GraceEmbedder

__all__ = ["SAMPLE", "fit_on_corpus"]

SAMPLE = 1000
"""Documents that the means are taken of: more move them by less than a rounding of an 8-bit index."""


def fit_on_corpus(
    embedder: GraceEmbedder,
    documents: Iterable[Document],
    *,
    queries: Sequence[str] | None = None,
    rationale: RationaleMode | None = None,
) -> None:
    """Fit an embedder's centring on a sample of a corpus, the same for the same corpus.

    Args:
        embedder: The embedder; its cache keeps what is written about the sample, so that nothing is written twice.
        documents: The corpus, read once.
        queries: A sample of queries; None takes the first words of the documents in their place.
        rationale: As the corpus will be embedded; None is the embedder's setting.

    Raises:
        InputError: If there are too few documents.
    """
    draw = random.Random(0)
    sample: list[str] = []
    for place, document in enumerate(documents):
        if len(sample) < SAMPLE:
            sample.append(document.embedded_text)
        elif (slot := draw.randrange(place + 1)) < SAMPLE:
            sample[slot] = document.embedded_text
    embedder.fit_centring(sample, queries, rationale=rationale)
