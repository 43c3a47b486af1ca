"""grace-retrieval: embeddings from written rationales.

Importing this package loads neither torch nor transformers; the names below are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from grace_retrieval.importing import light_imports
from grace_retrieval.version import __version__

if TYPE_CHECKING:
    from grace_retrieval.cache import (
        CachedRationale,
        CacheWarning,
        Fingerprint,
        MemoryCache,
        RationaleCache,
        SQLiteCache,
        open_cache,
    )
    from grace_retrieval.embedder import GraceEmbedder
    from grace_retrieval.engine import (
        Policy,
        RationaleEngine,
        RationaleOutput,
        RationaleRequest,
        SamplingOptions,
        TrainablePolicy,
    )
    from grace_retrieval.errors import (
        CacheCorruptedError,
        CacheError,
        EngineError,
        GraceError,
        IndexCorruptedError,
        InputError,
        MissingExtraError,
        ModelLoadError,
        ModelMismatchError,
        NonFiniteEmbeddingError,
    )
    from grace_retrieval.explain import Explanation
    from grace_retrieval.indexing import GraceIndex, Hit, SearchResult
    from grace_retrieval.pipeline import RationalePipeline
    from grace_retrieval.prompt import (
        DEFAULT_PROMPT,
        DOCUMENT_PROMPT,
        QUERY_PROMPT,
        RationalePrompt,
        TruncationWarning,
    )
    from grace_retrieval.rationale import Rationale
    from grace_retrieval.registration import register
    from grace_retrieval.registry import shared_embedder, unload_embedders
    from grace_retrieval.rows import EncodedTexts, RationaleRow
    from grace_retrieval.vector_identity import VectorIdentity

_MODULES = {
    "cache": (
        "CacheWarning",
        "CachedRationale",
        "Fingerprint",
        "MemoryCache",
        "RationaleCache",
        "SQLiteCache",
        "open_cache",
    ),
    "embedder": ("GraceEmbedder",),
    "engine": (
        "Policy",
        "RationaleEngine",
        "RationaleOutput",
        "RationaleRequest",
        "SamplingOptions",
        "TrainablePolicy",
    ),
    "errors": (
        "CacheCorruptedError",
        "CacheError",
        "EngineError",
        "GraceError",
        "IndexCorruptedError",
        "InputError",
        "MissingExtraError",
        "ModelLoadError",
        "ModelMismatchError",
        "NonFiniteEmbeddingError",
    ),
    "explain": ("Explanation",),
    "indexing": ("GraceIndex", "Hit", "SearchResult"),
    "pipeline": ("RationalePipeline",),
    "prompt": ("DEFAULT_PROMPT", "DOCUMENT_PROMPT", "QUERY_PROMPT", "RationalePrompt", "TruncationWarning"),
    "rationale": ("Rationale",),
    "registration": ("register",),
    "registry": ("shared_embedder", "unload_embedders"),
    "rows": ("EncodedTexts", "RationaleRow"),
    "vector_identity": ("VectorIdentity",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "DEFAULT_PROMPT",
    "DOCUMENT_PROMPT",
    "QUERY_PROMPT",
    "CacheCorruptedError",
    "CacheError",
    "CacheWarning",
    "CachedRationale",
    "EncodedTexts",
    "EngineError",
    "Explanation",
    "Fingerprint",
    "GraceEmbedder",
    "GraceError",
    "GraceIndex",
    "Hit",
    "IndexCorruptedError",
    "InputError",
    "MemoryCache",
    "MissingExtraError",
    "ModelLoadError",
    "ModelMismatchError",
    "NonFiniteEmbeddingError",
    "Policy",
    "Rationale",
    "RationaleCache",
    "RationaleEngine",
    "RationaleOutput",
    "RationalePipeline",
    "RationalePrompt",
    "RationaleRequest",
    "RationaleRow",
    "SQLiteCache",
    "SamplingOptions",
    "SearchResult",
    "TrainablePolicy",
    "TruncationWarning",
    "VectorIdentity",
    "__version__",
    "open_cache",
    "register",
    "shared_embedder",
    "unload_embedders",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with light_imports():
        module = importlib.import_module(f"{__name__}.{_MODULE_OF[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
