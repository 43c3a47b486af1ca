"""Offline batch indexing: a corpus goes in, a folder of open files comes out, and it is searched.

The names below are imported when first used, so that none of them costs an import of torch or FAISS before.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grace_retrieval.corpus.corpus import Columns, Corpus
    from grace_retrieval.corpus.document import Document
    from grace_retrieval.indexing.build import BuildOptions, BuildSummary, build_index
    from grace_retrieval.indexing.choose import IndexChoice, choose_index
    from grace_retrieval.indexing.commit import FaissOptions
    from grace_retrieval.indexing.hits import Hit, SearchResult
    from grace_retrieval.indexing.index import GraceIndex
    from grace_retrieval.indexing.manifest import IndexManifest
    from grace_retrieval.indexing.removal import delete_documents

_MODULES = {
    "grace_retrieval.corpus.document": ("Document",),
    "grace_retrieval.indexing.build": ("BuildOptions", "BuildSummary", "build_index"),
    "grace_retrieval.indexing.choose": ("IndexChoice", "choose_index"),
    "grace_retrieval.indexing.commit": ("FaissOptions",),
    "grace_retrieval.indexing.hits": ("Hit", "SearchResult"),
    "grace_retrieval.indexing.index": ("GraceIndex",),
    "grace_retrieval.indexing.manifest": ("IndexManifest",),
    "grace_retrieval.corpus.corpus": ("Columns", "Corpus"),
    "grace_retrieval.indexing.removal": ("delete_documents",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "BuildOptions",
    "BuildSummary",
    "Columns",
    "Corpus",
    "Document",
    "FaissOptions",
    "GraceIndex",
    "Hit",
    "IndexChoice",
    "IndexManifest",
    "SearchResult",
    "build_index",
    "choose_index",
    "delete_documents",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
