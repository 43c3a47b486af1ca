"""RecordingCache: keeps the rows of the work in hand, counts them, and stores them when told to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from grace_retrieval.cache import (
    CachedRationale,
    CacheStats,
    Fingerprint,
    MemoryCache,
    RationaleCache,
    VerifyReport,
)

__all__ = ["RecordingCache"]


class RecordingCache:
    """A RationaleCache in front of another, for one thread.

    The rows of the work in hand stay in memory until `commit`. So rationales can be looked up behind `encode` without
    being generated again, also where nothing is stored. And a piece of work is stored as a whole or not at all: begun
    again after an interruption it forms the same batches, and so gives the same bits.

    Args:
        inner: Where rows are stored; None stores none.
    """

    def __init__(self, inner: RationaleCache | None) -> None:
        self._inner: RationaleCache = MemoryCache(max_bytes=1) if inner is None else inner
        self._stores = inner is not None
        self._rows: dict[bytes, CachedRationale] = {}
        self._fresh: dict[bytes, dict[bytes, CachedRationale]] = {}
        self.generated = 0
        self.found = 0

    def commit(self) -> None:
        """Store the new rows, and forget all that are in memory."""
        if self._stores:
            for fingerprint, rows in self._fresh.items():
                self._inner.put_many(rows, fingerprint=fingerprint)
        self._fresh.clear()
        self._rows.clear()

    def register(self, fingerprint: Fingerprint) -> None:
        """Remembers what a fingerprint's digest stands for."""
        self._inner.register(fingerprint)

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, CachedRationale]:
        """Looks rows up, first among those in hand."""
        there = {key: self._rows[key] for key in keys if key in self._rows}
        wanted = [key for key in dict.fromkeys(keys) if key not in there]
        if self._stores and wanted:
            stored = self._inner.get_many(wanted)
            self.found += len(stored)
            self._rows.update(stored)
            there.update(stored)
        return there

    def put_many(self, rows: Mapping[bytes, CachedRationale], *, fingerprint: bytes) -> None:
        """Keeps rows until `commit`."""
        self.generated += len(rows)
        self._rows.update(rows)
        self._fresh.setdefault(fingerprint, {}).update(rows)

    def __len__(self) -> int:
        """Number of stored rows."""
        return len(self._inner)

    def stats(self) -> CacheStats:
        """Sizes and counters of the store."""
        return self._inner.stats()

    def clear(self, fingerprint: bytes | None = None) -> int:
        """Removes stored rows."""
        return self._inner.clear(fingerprint)

    def rows(self) -> Iterator[tuple[bytes, bytes, CachedRationale, float]]:
        """Streams all stored rows."""
        return self._inner.rows()

    def verify(self) -> VerifyReport:
        """Checks the store."""
        return self._inner.verify()

    def close(self) -> None:
        """Releases the store's files; rows in hand are not stored."""
        self._inner.close()
