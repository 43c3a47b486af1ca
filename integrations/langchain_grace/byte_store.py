"""GraceByteStore: a rationale cache as LangChain's key-value store of bytes."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from langchain_core.stores import BaseStore

from grace_retrieval.cache import CachedRationale, MemoryCache, SQLiteCache
from grace_retrieval.errors import InputError

if TYPE_CHECKING:
    from grace_retrieval.embedder import GraceEmbedder

__all__ = ["GraceByteStore"]


class GraceByteStore(BaseStore[str, bytes]):
    """Keys and values in the embedder's cache: bounded, shared by processes, safe when one is killed.

    Listing keys reads the whole cache. Values that were not used for long give way to new rows, as in any cache.

    Args:
        embedder: Its cache is used; keys belong to its model, prompts and options, and no other finds them.

    Raises:
        InputError: If the embedder has no cache, or one that cannot delete.
    """

    def __init__(self, embedder: GraceEmbedder) -> None:
        cache = embedder.cache
        if not isinstance(cache, (SQLiteCache, MemoryCache)):
            raise InputError(f"cache={cache!r} cannot be a byte store: give cache='default', a path or 'memory'.")
        self._cache = cache
        # No engine of this name exists, so no rationale can be taken for a value.
        self._fingerprint = replace(embedder.fingerprint("document"), engine="langchain-bytes")
        self._identity = embedder.vector_identity().digest().encode()

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """Values by key; None for what is not there."""
        rows = self._cache.get_many([self._row_key(key) for key in keys])
        found = [rows.get(self._row_key(key)) for key in keys]
        return [None if row is None else base64.b64decode(json.loads(row.text)[1]) for row in found]

    def mset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Store values, over those that are there."""
        rows = {self._row_key(key): _row(key, value) for key, value in key_value_pairs}
        self._cache.delete_many(list(rows))
        self._cache.register(self._fingerprint)
        self._cache.put_many(rows, fingerprint=self._fingerprint.digest())

    def mdelete(self, keys: Sequence[str]) -> None:
        """Delete keys; those that are not there are ignored."""
        self._cache.delete_many([self._row_key(key) for key in keys])

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """Keys that start with `prefix`, oldest first."""
        for row_key, digest, row, _ in self._cache.rows():
            if digest == self._fingerprint.digest():
                key: str = json.loads(row.text)[0]
                if key.startswith(prefix or "") and self._row_key(key) == row_key:
                    yield key

    def _row_key(self, key: str) -> bytes:
        return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16, key=self._identity).digest()


def _row(key: str, value: bytes) -> CachedRationale:
    text = json.dumps([key, base64.b64encode(value).decode()])
    return CachedRationale(token_ids=(), text=text, finish_reason="stop", vector=np.zeros(1, dtype=np.float32))
