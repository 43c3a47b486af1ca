"""Offline batch indexing: a corpus goes in, a folder of open files comes out, and it is searched.

The names below are imported when first used, so that none of them costs an import of torch or FAISS before.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grace_retrieval.indexing.build import BuildOptions, build_index
    from grace_retrieval.indexing.hits import Hit, SearchResult
    from grace_retrieval.indexing.index import GraceIndex
    from grace_retrieval.indexing.manifest import IndexManifest
    from grace_retrieval.indexing.shards import Document

_MODULE_OF = {
    "BuildOptions": "build",
    "Document": "shards",
    "GraceIndex": "index",
    "Hit": "hits",
    "IndexManifest": "manifest",
    "SearchResult": "hits",
    "build_index": "build",
}

__all__ = ["BuildOptions", "Document", "GraceIndex", "Hit", "IndexManifest", "SearchResult", "build_index"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
