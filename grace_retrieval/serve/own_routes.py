"""Routes of our own: /rationale, /explain and /search. Rationales are labelled as the model's wherever they appear."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from grace_retrieval.errors import InputError
from grace_retrieval.rationale import Rationale, RationaleMode
from grace_retrieval.serve.errors import INVALID, NOT_FOUND, RequestError
from grace_retrieval.serve.fields import Fields, check_count, clean_text
from grace_retrieval.serve.roles import DEFAULT_ROLE, ROLES
from grace_retrieval.serve.service import EmbeddingService

if TYPE_CHECKING:
    from grace_retrieval.explain import Explanation

__all__ = ["explain", "rationale", "search"]

FORMATS = ("json", "html", "fragment")


async def rationale(service: EmbeddingService, body: Any) -> dict[str, Any]:
    """POST /rationale: what the model writes about texts.

    Args:
        service: What writes.
        body: `texts` (a string or strings), `role`, `truncate`.

    Raises:
        RequestError: If the body cannot be used.
    """
    started = time.monotonic()
    fields = Fields(body, ("texts", "role", "truncate"))
    role = next((role for role in ROLES if role == fields.choice("role", ROLES)), DEFAULT_ROLE)
    texts = fields.texts("texts", service.options.max_texts, "--max-texts")
    found = await service.embed(texts, role, param="texts", rationale=True, truncate=fields.flag("truncate"))
    return {
        "model": service.name,
        "role": role,
        "rationales": [_rationale(one.rationale, True, cached=one.cached) for one in found],
        "seconds": round(time.monotonic() - started, 4),
    }


async def search(service: EmbeddingService, body: Any) -> dict[str, Any]:
    """POST /search: documents of the index that are closest to a query.

    Args:
        service: With an index.
        body: `query`, `k` (10), `filter` (metadata that must be equal, or one of a list), `hybrid`.

    Raises:
        RequestError: If the body cannot be used, or there is no index.
    """
    started = time.monotonic()
    index = service.index
    if index is None:
        raise RequestError("This server has no index: start it with --index FOLDER.", NOT_FOUND)
    fields = Fields(body, ("query", "k", "filter", "hybrid"))
    query = fields.text("query")
    k = fields.whole("k", service.options.max_hits, "--max-hits") or 10
    hybrid = bool(fields.flag("hybrid"))
    wanted = _filter(fields.get("filter"))
    if hybrid and not service.index_facts["hybrid"]:
        raise RequestError(
            "hybrid=true needs bm25s on the server: pip install 'grace-retrieval[hybrid]'.", param="hybrid"
        )
    mode = index.manifest.rationale
    (embedded,) = await service.embed([query], "query", param="query", rationale=mode)
    try:
        if hybrid:
            found = await service.beside(index.search, query, k, filter=wanted, hybrid=True)
        else:
            (found,) = await service.beside(index.search_vectors, embedded.vector[None], k, filter=wanted)
    except InputError as error:  # the filter, as all else is checked
        raise RequestError(_of_the_index(error, service), param="filter") from error
    return {
        "model": service.name,
        "query": query,
        "query_rationale": _rationale(embedded.rationale, mode, cached=embedded.cached),
        "hybrid": hybrid,
        "documents": len(index),
        "hits": [
            {
                "id": hit.id,
                "score": round(hit.score, 6),
                "title": hit.title,
                "text": hit.text,
                "metadata": hit.metadata,
                "rationale": _rationale(hit.rationale, mode),
            }
            for hit in found.hits
        ],
        "seconds": round(time.monotonic() - started, 4),
    }


async def explain(service: EmbeddingService, body: Any, *, html: bool) -> dict[str, Any] | str:
    """POST /explain: why documents get their scores for a query.

    Args:
        service: What embeds.
        body: `query`; `documents` (a string or strings) or `ids` of documents of the index; `format`: "json", "html" (a
            page of the first document) or "fragment" (a part of a page, without style and script, for each document).
        html: Whether the client would rather have HTML, where `format` does not say.

    Returns:
        JSON values, or a page.

    Raises:
        RequestError: If the body cannot be used.
    """
    started = time.monotonic()
    fields = Fields(body, ("query", "documents", "ids", "format"))
    query = fields.text("query")
    shape = fields.choice("format", FORMATS) or ("html" if html else "json")
    most = service.options.max_explained
    documents: list[Any]
    if ("documents" in fields) == ("ids" in fields):
        raise RequestError("Give documents (texts), or ids of documents of the index: one of them.", param="documents")
    (asked,) = await service.embed([query], "query", param="query")
    if "ids" in fields:
        documents = await _documents_by_id(service, fields.get("ids"))
    else:
        documents = fields.texts("documents", most, "--max-explained")
        # In the batches of everybody; what is explained then is found in the cache.
        await service.embed(documents, "document", param="documents")
    found = await service.explain(query, documents)
    if shape == "html":
        return found[0].to_html()
    shown = [one.to_dict() if shape == "json" else _fragment(one) for one in found]
    return {
        "model": service.name,
        "query": query,
        "query_rationale": _rationale(asked.rationale, service.rationale, cached=asked.cached),
        "explanations": shown,
        "seconds": round(time.monotonic() - started, 4),
    }


async def _documents_by_id(service: EmbeddingService, ids: Any) -> list[Any]:
    if service.index is None:
        raise RequestError("This server has no index: give documents, or start it with --index FOLDER.", NOT_FOUND)
    if not isinstance(ids, list) or not all(isinstance(id_, str) for id_ in ids):
        raise RequestError("ids is no list of strings: give ids of documents of the index.", param="ids")
    check_count("ids", len(ids), service.options.max_explained, "--max-explained")
    try:
        return list(await service.beside(service.index.get, [clean_text(id_) for id_ in ids]))
    except InputError as error:
        raise RequestError(_of_the_index(error, service), NOT_FOUND, param="ids") from error


def _of_the_index(error: InputError, service: EmbeddingService) -> str:
    """A message of the index, which may name its folder, without that."""
    folder = "" if service.index is None else str(service.index.folder)
    return str(error).replace(folder, "the index") if folder else str(error)


def _fragment(explanation: Explanation) -> dict[str, Any]:
    """A heat map to be put into a page that has the style and script already."""
    from grace_retrieval.explain.html import explanation_body

    return {
        "score": round(explanation.score, 6),
        "rank": explanation.rank,
        "id": explanation.id,
        "title": explanation.title,
        "html": explanation_body(explanation),
    }


def _filter(given: Any) -> Mapping[str, Any] | None:
    """A filter: scalars, or lists of them, by name."""
    if given is None or given == {}:
        return None
    if not isinstance(given, dict):
        raise RequestError('filter is no object: give values by name, such as {"lang": "en"}.', INVALID, param="filter")
    for name, value in given.items():
        if any(isinstance(one, (dict, list)) for one in (value if isinstance(value, list) else [value])):
            raise RequestError(f"filter[{name[:60]!r}]: give a value, or a list of values.", param="filter")
    return given


def _rationale(found: Rationale, mode: RationaleMode, cached: bool | None = None) -> dict[str, Any]:
    """A rationale, with who wrote it: the model, or nobody where it is the text again."""
    shown: dict[str, Any] = {
        "text": found.text,
        "reasoning": found.reasoning,
        "summary": found.summary,
        "truncated": found.truncated,
        "repeats": found.repeats,
        "text_truncated": found.text_truncated,
        "written_by": "model" if mode is True else None,
    }
    return shown if cached is None else {**shown, "cached": cached}
