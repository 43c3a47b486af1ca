"""Vectors and rationales of many texts, in batches that are the same whenever the texts are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from grace_retrieval.cache.recording import RecordingCache
from grace_retrieval.rationale import Rationale

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from grace_retrieval.embedder import GraceEmbedder

__all__ = ["CHUNK", "EncodedTexts", "encode_texts"]

CHUNK = 128
"""Texts that are embedded together. Rationales are stored a chunk at a time, so an interruption loses no more."""


@dataclass(frozen=True, kw_only=True)
class EncodedTexts:
    """What an embedder made of texts, in their order.

    Attributes:
        vectors: Shape: (texts, dim), float32, of length 1; zeros for blank texts.
        rationales: One a text; empty if rationales were not wanted.
    """

    vectors: npt.NDArray[np.float32]
    rationales: list[Rationale]


def encode_texts(
    embedder: GraceEmbedder,
    cache: RecordingCache,
    texts: Sequence[str],
    *,
    role: Literal["query", "document"],
    rationale: bool,
) -> EncodedTexts:
    """Embed texts and keep what was written about them.

    The chunks depend on the texts alone, and a chunk is stored as a whole or not at all. So texts that are embedded
    again after an interruption go through the same batches, and get the same bits.

    Args:
        embedder: The model.
        cache: Its cache.
        texts: Texts; equal ones are embedded once.
        role: What they are in retrieval.
        rationale: Whether to write rationales.

    Returns:
        Vectors and rationales.
    """
    import numpy as np

    encode = embedder.encode_query if role == "query" else embedder.encode_document
    unique = sorted(dict.fromkeys(texts), key=len, reverse=True)
    vectors = np.zeros((len(unique), embedder.get_embedding_dimension() or 0), dtype=np.float32)
    written: list[Rationale] = []
    for start in range(0, len(unique), CHUNK):
        chunk = unique[start : start + CHUNK]
        vectors[start : start + CHUNK] = encode(chunk, show_progress_bar=False, rationale=rationale)
        written += _written(embedder, chunk, role=role, rationale=rationale)
        cache.commit()
    place = {text: index for index, text in enumerate(unique)}
    places = [place[text] for text in texts]
    return EncodedTexts(vectors=vectors[places], rationales=[written[index] for index in places])


def _written(
    embedder: GraceEmbedder, texts: list[str], *, role: Literal["query", "document"], rationale: bool
) -> list[Rationale]:
    """What the model wrote about texts that were just embedded."""
    writer = embedder.writer
    if not rationale:
        rendered = writer.prompt(embedder.prompts.get(role)).render(texts, max_length=writer.max_seq_length)
        return [Rationale(text="", token_ids=(), truncated=False, text_truncated=text.truncated) for text in rendered]
    on_row, writer.on_row = writer.on_row, None
    try:
        return embedder.rationales(texts, role)
    finally:
        writer.on_row = on_row
