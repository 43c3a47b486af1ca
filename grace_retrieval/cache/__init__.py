"""The rationale cache: one row a text, keyed on everything that may change it."""

from __future__ import annotations

from grace_retrieval.cache.base import (
    CacheStats,
    CacheWarning,
    FingerprintStats,
    RationaleCache,
    VerifyReport,
)
from grace_retrieval.cache.memory import MemoryCache
from grace_retrieval.cache.opening import cache_path, clear_cache, default_cache_path, open_cache
from grace_retrieval.cache.records import CachedRationale
from grace_retrieval.cache.sqlite import SQLiteCache
from grace_retrieval.fingerprint import Fingerprint, hash_files, row_key

__all__ = [
    "CacheStats",
    "CacheWarning",
    "CachedRationale",
    "Fingerprint",
    "FingerprintStats",
    "MemoryCache",
    "RationaleCache",
    "SQLiteCache",
    "VerifyReport",
    "cache_path",
    "clear_cache",
    "default_cache_path",
    "hash_files",
    "open_cache",
    "row_key",
]
