"""What can be explained: strings, hits of a GraceIndex, and documents and nodes of LangChain and LlamaIndex.

These are told apart by their attributes: neither library is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from grace_retrieval.errors import InputError
from grace_retrieval.rationale import Rationale

__all__ = ["EmbeddedDocument", "read_document", "read_documents"]


@dataclass(frozen=True, kw_only=True)
class EmbeddedDocument:
    """A document as it was embedded.

    Args:
        text: What the embedder was shown.
        rationale: What is embedded with it; None has the model write one, or looks it up.
        id: Its id, if it has one.
        title: Its title, if it has one.
    """

    text: str
    rationale: Rationale | str | None = None
    id: str | None = None
    title: str | None = None


def read_document(source: Any) -> EmbeddedDocument:
    """Take text, id, title and rationale out of a search result.

    Args:
        source: A string; a `Hit` or `Document` of a GraceIndex; a LangChain `Document`, alone or with its score as
            `similarity_search_with_score` gives it; a LlamaIndex node, alone or as a `NodeWithScore`. Of a node the
            text with its metadata is taken, as LlamaIndex embeds it.

    Raises:
        InputError: If it is none of these.

    Example:
        >>> read_document("Tides follow the moon.").text
        'Tides follow the moon.'
    """
    if isinstance(source, EmbeddedDocument):
        return source
    if isinstance(source, str):
        return EmbeddedDocument(text=source)
    if _is_scored(source):
        source = source[0]
    if hasattr(source, "embedded_text"):
        own = getattr(source, "rationale", None)
        return EmbeddedDocument(text=source.embedded_text, rationale=own, id=source.id, title=source.title)
    source = getattr(source, "node", source)  # a NodeWithScore
    metadata = getattr(source, "metadata", None)
    title = metadata.get("title") if isinstance(metadata, dict) else None
    title = title if isinstance(title, str) else None
    if isinstance(text := getattr(source, "page_content", None), str):
        return EmbeddedDocument(text=text, id=getattr(source, "id", None), title=title)
    if hasattr(source, "get_content") and hasattr(source, "node_id"):
        return EmbeddedDocument(text=source.get_content(metadata_mode="embed"), id=source.node_id, title=title)
    raise InputError(
        f"{type(source).__name__} ({source!r:.60}) cannot be explained: give a string, a hit of a GraceIndex, a "
        "LangChain Document or a LlamaIndex node; or a list of them."
    )


def read_documents(sources: Any) -> tuple[list[EmbeddedDocument], bool]:
    """Read one document or several.

    Args:
        sources: What `read_document` takes, or a list or tuple of it.

    Returns:
        The documents, and whether a single one was given.

    Raises:
        InputError: If one cannot be read; the message has its place.
    """
    if not isinstance(sources, (list, tuple)) or _is_scored(sources):
        return [read_document(sources)], True
    documents = []
    for place, source in enumerate(sources):
        try:
            documents.append(read_document(source))
        except InputError as error:
            raise InputError(f"document {place}: {error}") from error
    return documents, False


def _is_scored(source: Any) -> bool:
    """Whether it is a pair of a document and its score."""
    return isinstance(source, tuple) and len(source) == 2 and isinstance(source[1], (int, float))
