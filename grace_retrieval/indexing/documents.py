"""What may be indexed from Python: documents, texts, rows, or documents of LangChain, brought into one form."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from grace_retrieval.corpus.corpus import Corpus, content_id
from grace_retrieval.corpus.document import Document
from grace_retrieval.errors import InputError

__all__ = ["as_documents"]


def as_documents(source: Any) -> Iterator[Document]:
    """Documents of whatever holds some.

    Args:
        source: A Corpus, or an iterable of Documents, texts (their ids are made from their content), mappings with
            `text` and perhaps `id` and `title` (everything else is metadata), or LangChain documents.

    Yields:
        One Document an item.

    Raises:
        InputError: If an item is none of these, or a text is blank; its place is named.

    Example:
        >>> [document.text for document in as_documents(["Tides follow the moon.", {"text": "Bread", "id": "b"}])]
        ['Tides follow the moon.', 'Bread']
    """
    if isinstance(source, Corpus):
        yield from source.documents()
        return
    if isinstance(source, (str, bytes, Mapping)) or not isinstance(source, Iterable):
        raise InputError(
            f"The documents are {type(source).__name__}: give a list of texts or documents, or the files as "
            "Corpus(['corpus.jsonl'])."
        )
    for place, item in enumerate(source):
        if isinstance(item, Document):
            yield _checked(item, place)
            continue
        found = _read(item, place)
        if not found.embedded_text.strip():
            raise InputError(f"document {place} is blank: leave it out, or give it as a Document to keep it unfound.")
        yield found


def _checked(document: Document, place: int) -> Document:
    """A document whose parts are what they are said to be; nothing checks them when it is made."""
    where = document.source or f"document {place}"
    for name, value, kinds in (
        ("id", document.id, str),
        ("text", document.text, str),
        ("title", document.title, (str, type(None))),
        ("metadata", document.metadata, Mapping),
    ):
        if not isinstance(value, kinds):
            what = "a mapping" if kinds is Mapping else "a string"
            raise InputError(f"{where} has {type(value).__name__} as {name!r}: give {what}.")
    if document.vector is not None:
        try:
            vector = np.asarray(document.vector, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise InputError(f"{where}: its vector is no list of numbers ({error}).") from error
        if vector.ndim != 1 or not len(vector) or not np.isfinite(vector).all():
            raise InputError(f"{where}: its vector has shape {vector.shape}: give finite numbers of shape (dim,).")
    return document


def _read(item: Any, place: int) -> Document:
    where = f"document {place}"
    if isinstance(item, str):
        return Document(id=content_id(None, item, {}), text=item, source=where)
    if isinstance(item, Mapping):
        values = dict(item)
    elif isinstance(getattr(item, "page_content", None), str):
        values = {**item.metadata, "text": item.page_content, "id": item.id}
    else:
        raise InputError(
            f"{where} is {type(item).__name__}: give a text, a mapping with 'text', a Document or LangChain's."
        )
    text, name, title = values.pop("text", None), values.pop("id", None), values.pop("title", None)
    if not isinstance(text, str):
        raise InputError(
            f"{where} has {type(text).__name__} as 'text', and keys {', '.join(map(str, item))}: give a string."
        )
    if not isinstance(title, (str, type(None))):
        raise InputError(f"{where} has {type(title).__name__} as 'title': give a string or None.")
    if isinstance(name, bool) or not isinstance(name, (str, int, type(None))):
        raise InputError(f"{where} has {type(name).__name__} as 'id': give a string or a whole number.")
    try:
        name = content_id(title, text, values) if name is None else str(name)
    except TypeError as error:
        raise InputError(f"{where}: its metadata are no JSON values ({error}).") from error
    return Document(id=name, text=text, title=title, metadata=values, source=where)
