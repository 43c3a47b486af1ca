"""What a build will cost, before it is begun: texts, tokens, generations, disk, and time by a measured sample."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from grace_retrieval.corpus.document import Document
from grace_retrieval.rationale import RationaleMode

if TYPE_CHECKING:
    from grace_retrieval.embedder import GraceEmbedder

__all__ = ["BuildEstimate", "estimate_build"]

_TOKEN_BYTES = 4
_WINDOW = 1024


@dataclass(frozen=True, kw_only=True)
class BuildEstimate:
    """What a build will cost.

    Attributes:
        documents: Documents to be indexed.
        characters: Characters of their titles and texts.
        tokens: Tokens of their prompts.
        shortened: Documents that are longer than the model takes.
        cached: Documents whose rationale is in the cache.
        generations: Documents the model will write about.
        new_tokens: Tokens it will write: by the sample, or at most if there is none.
        most_new_tokens: Tokens it will write at most.
        disk_bytes: Size of the shards, uncompressed, and of a Flat FAISS index.
        sample: Documents that were embedded to measure; their rationales are in the cache.
        seconds: Time by the sample's rate; None without a sample.
    """

    documents: int
    characters: int
    tokens: int
    shortened: int
    cached: int
    generations: int
    new_tokens: int
    most_new_tokens: int
    disk_bytes: int
    sample: int
    seconds: float | None


def estimate_build(
    documents: Iterable[Document],
    embedder: GraceEmbedder,
    *,
    rationale: RationaleMode = True,
    sample: int = 32,
) -> BuildEstimate:
    """Estimate a build.

    Args:
        documents: The documents.
        embedder: The model.
        rationale: Whether rationales will be written.
        sample: Documents to embed for a measurement; 0 for none.

    Returns:
        The estimate. Equal texts count once where the model is concerned.
    """
    pipeline, prompt = embedder.pipeline, embedder.prompts.get("document")
    template, options = pipeline.prompt(prompt), pipeline.options
    total = characters = tokens = shortened = cached = 0
    pending: set[bytes] = set()
    chosen: list[tuple[bytes, str]] = []
    for window in _windows(documents):
        texts = [text for text in (document.embedded_text for document in window) if text.strip()]
        total += len(window)
        characters += sum(map(len, texts))
        rendered = template.render(texts, max_length=options.max_seq_length)
        tokens += sum(len(shown.input_ids) for shown in rendered)
        shortened += sum(shown.truncated for shown in rendered)
        row_keys = pipeline.keys(rendered, role="document", prompt=prompt, rationale=rationale)
        keys = dict(zip(row_keys, texts, strict=True))
        found = {} if pipeline.cache is None else pipeline.cache.get_many(list(keys))
        cached += len(found)
        missing = {key: text for key, text in keys.items() if key not in found and key not in pending}
        pending |= missing.keys()
        # Keys are hashes, so the smallest are a sample of the whole corpus, and the same every time.
        chosen = heapq.nsmallest(sample, [*chosen, *missing.items()])
    limit = options.max_new_tokens if rationale else 0
    seconds, written = None, limit
    if chosen:
        texts = [text for _, text in chosen]
        started = time.perf_counter()
        rows = embedder.encode_with_rationales(texts, "document", rationale=rationale).rationales
        rate = (time.perf_counter() - started) / len(chosen)
        written = round(sum(len(row.token_ids) for row in rows) / len(rows))
        seconds = rate * len(pending)
    dimension = embedder.get_embedding_dimension() or 0
    vectors = 2 * 4 * dimension * total
    return BuildEstimate(
        documents=total,
        characters=characters,
        tokens=tokens,
        shortened=shortened,
        cached=cached,
        generations=len(pending) if rationale else 0,
        new_tokens=written * len(pending) if rationale else 0,
        most_new_tokens=limit * len(pending),
        disk_bytes=vectors + characters + total * written * 2 * _TOKEN_BYTES,
        sample=len(chosen),
        seconds=seconds,
    )


def _windows(documents: Iterable[Document]) -> Iterator[list[Document]]:
    stream = iter(documents)
    while window := list(islice(stream, _WINDOW)):
        yield window
