"""A rationale cache in memory: for tests, notebooks and machines without a writable disk."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from grace_retrieval.cache.base import CacheStats, FingerprintStats, VerifyReport
from grace_retrieval.cache.codec import DamagedRowError, EncodedRow, check_digests
from grace_retrieval.cache.limits import check_max_bytes, low_water
from grace_retrieval.cache.records import CachedRationale
from grace_retrieval.errors import CacheCorruptedError
from grace_retrieval.fingerprint import Fingerprint
from grace_retrieval.forking import protect

__all__ = ["MemoryCache"]


class _Item(NamedTuple):
    fingerprint: bytes
    created: float
    checksum: bytes
    row: EncodedRow


class MemoryCache:
    """Rationales in a dict, least recently used out.

    Rows are kept as bytes, as in the SQLite store: the limit counts the same, and nothing a caller does to a
    row reaches the cache. A pickled or copied `MemoryCache` is empty with the same limit; a forked child
    starts with the rows of its parent.

    Args:
        max_bytes: Limit in bytes; the least recently used rows go when it is passed.

    Raises:
        InputError: `max_bytes` is not a positive int.
    """

    def __init__(self, *, max_bytes: int = 1 << 30) -> None:
        self._max_bytes = check_max_bytes(max_bytes)
        self._lock = threading.RLock()
        self._items: OrderedDict[bytes, _Item] = OrderedDict()
        self._descriptions: dict[bytes, dict[str, Any]] = {}
        self._bytes = 0
        self._hits = 0
        self._misses = 0
        protect(self)

    def __repr__(self) -> str:
        return f"MemoryCache(max_bytes={self._max_bytes})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self._max_bytes,))

    def __enter__(self) -> MemoryCache:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._items)

    def register(self, fingerprint: Fingerprint) -> None:
        """Remember what a fingerprint's digest stands for.

        Args:
            fingerprint: The fingerprint.
        """
        with self._lock:
            self._descriptions[fingerprint.digest()] = fingerprint.describe()

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, CachedRationale]:
        """Look rows up and counts them as used; see `RationaleCache.get_many`.

        Args:
            keys: Row keys.

        Returns:
            The rows that are there, by key.

        Raises:
            InputError: A key is not 16 bytes.
            CacheCorruptedError: A row's bytes changed in memory.
        """
        unique = dict.fromkeys(keys)
        check_digests(unique, "a row key")
        with self._lock:
            items = {key: self._items[key] for key in unique if key in self._items}
            for key in items:
                self._items.move_to_end(key)
            self._hits += len(items)
            self._misses += len(unique) - len(items)
        return {key: _read(key, item) for key, item in items.items()}

    def put_many(self, rows: Mapping[bytes, CachedRationale], *, fingerprint: bytes) -> None:
        """Store rows that are not there yet; see `RationaleCache.put_many`.

        Args:
            rows: Rows by key.
            fingerprint: Digest of the fingerprint they were made under.

        Raises:
            InputError: A key, the digest or a row cannot be stored.
        """
        check_digests((fingerprint,), "a fingerprint digest")
        check_digests(rows, "a row key")
        now = time.time()
        new: dict[bytes, _Item] = {}
        for key, row in rows.items():
            encoded = EncodedRow.encode(row)
            new[key] = _Item(fingerprint, now, encoded.checksum(key, fingerprint, now), encoded)
        with self._lock:
            for key, item in new.items():
                if key in self._items:
                    self._items.move_to_end(key)
                else:
                    self._items[key] = item
                    self._bytes += item.row.size
            if self._bytes > self._max_bytes:
                while self._bytes > low_water(self._max_bytes):
                    self._bytes -= self._items.popitem(last=False)[1].row.size

    def stats(self) -> CacheStats:
        """Sizes, and how often this object was asked.

        Returns:
            The statistics; `path` is None.
        """
        with self._lock:
            groups: dict[bytes, list[int]] = {}
            for item in self._items.values():
                group = groups.setdefault(item.fingerprint, [0, 0])
                group[0] += 1
                group[1] += item.row.size
            created = [item.created for item in self._items.values()]
            return CacheStats(
                rows=len(self._items),
                bytes=self._bytes,
                max_bytes=self._max_bytes,
                path=None,
                file_bytes=0,
                by_fingerprint=tuple(
                    FingerprintStats(
                        digest=digest.hex(), description=self._descriptions.get(digest), rows=rows, bytes=size
                    )
                    for digest, (rows, size) in sorted(groups.items(), key=lambda group: -group[1][1])
                ),
                oldest_created=min(created, default=None),
                newest_created=max(created, default=None),
                hits=self._hits,
                misses=self._misses,
            )

    def clear(self, fingerprint: bytes | None = None) -> int:
        """Remove rows.

        Args:
            fingerprint: Remove only the rows of this fingerprint digest; None removes all.

        Returns:
            Number of rows removed.

        Raises:
            InputError: The digest is not 16 bytes.
        """
        if fingerprint is not None:
            check_digests((fingerprint,), "a fingerprint digest")
        with self._lock:
            gone = [key for key, item in self._items.items() if fingerprint in (None, item.fingerprint)]
            for key in gone:
                self._bytes -= self._items.pop(key).row.size
            return len(gone)

    def delete_many(self, keys: Sequence[bytes]) -> int:
        """Remove single rows; keys that are not there are ignored.

        Args:
            keys: Row keys.

        Returns:
            Number of rows removed.

        Raises:
            InputError: A key is not 16 bytes.
        """
        unique = dict.fromkeys(keys)
        check_digests(unique, "a row key")
        with self._lock:
            gone = [key for key in unique if key in self._items]
            for key in gone:
                self._bytes -= self._items.pop(key).row.size
            return len(gone)

    def rows(self) -> Iterator[tuple[bytes, bytes, CachedRationale, float]]:
        """Stream the rows that are there now, oldest first.

        Yields:
            Key, fingerprint digest, row and creation in unix seconds.

        Raises:
            CacheCorruptedError: A row's bytes changed in memory.
        """
        with self._lock:
            items = sorted(self._items.items(), key=lambda pair: pair[1].created)
        for key, item in items:
            yield key, item.fingerprint, _read(key, item), item.created

    def verify(self) -> VerifyReport:
        """Compare every checksum.

        Returns:
            The report.
        """
        with self._lock:
            items = list(self._items.items())
        problems: list[str] = []
        for key, item in items:
            try:
                _read(key, item)
            except CacheCorruptedError as error:
                problems.append(str(error))
        return VerifyReport(rows=len(items), problems=tuple(problems))

    def close(self) -> None:
        """Do nothing: the rows live as long as the object."""

    def before_fork(self) -> None:
        """Wait for the other threads, so that the child does not inherit a lock that nobody releases."""
        self._lock.acquire()

    def after_fork(self) -> None:
        """Let threads in again."""
        self._lock.release()


def _rebuild(max_bytes: int) -> MemoryCache:
    return MemoryCache(max_bytes=max_bytes)


def _read(key: bytes, item: _Item) -> CachedRationale:
    try:
        return item.row.verified(key, item.fingerprint, item.created, item.checksum)
    except DamagedRowError as error:
        raise CacheCorruptedError(f"{error} in memory; start a new process or call clear()") from error
