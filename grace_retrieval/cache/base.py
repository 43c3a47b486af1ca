"""What every rationale cache can do, and the small reports it gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from grace_retrieval.cache.records import CachedRationale
from grace_retrieval.fingerprint import Fingerprint

__all__ = ["CacheStats", "CacheWarning", "FingerprintStats", "RationaleCache", "VerifyReport"]


class CacheWarning(UserWarning):
    """The cache cannot store rows; embedding goes on without it."""


@dataclass(frozen=True, kw_only=True)
class FingerprintStats:
    """The part of a cache that belongs to one fingerprint.

    Attributes:
        digest: Digest in hexadecimal.
        description: `Fingerprint.describe()`, or None if the fingerprint was never registered.
        rows: Number of rows.
        bytes: Bytes these rows count against the limit.
    """

    digest: str
    description: Mapping[str, Any] | None
    rows: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """What a cache holds, and how it served this process.

    Attributes:
        rows: Number of rows.
        bytes: Bytes the rows count against the limit.
        max_bytes: The limit.
        path: File of the cache, or None for a cache in memory.
        file_bytes: Size of the file on disk, 0 for a cache in memory.
        by_fingerprint: One entry a fingerprint, largest first.
        oldest_created: Unix seconds of the oldest row, or None if there is none.
        newest_created: Unix seconds of the newest row, or None if there is none.
        hits: Rows that this object found.
        misses: Rows that this object did not find.
    """

    rows: int
    bytes: int
    max_bytes: int
    path: str | None
    file_bytes: int
    by_fingerprint: tuple[FingerprintStats, ...]
    oldest_created: float | None
    newest_created: float | None
    hits: int
    misses: int


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """Result of reading a whole cache.

    Attributes:
        rows: Rows that were checked.
        problems: What is wrong, one line each.
    """

    rows: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@runtime_checkable
class RationaleCache(Protocol):
    """Store of rationales by row key, safe to share between threads.

    `open_cache` takes any object with these methods, so a store across hosts can be put in its place.
    """

    def register(self, fingerprint: Fingerprint) -> None:
        """Remember what a fingerprint's digest stands for, for statistics and messages.

        Args:
            fingerprint: The fingerprint under which rows will be read and written.
        """

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, CachedRationale]:
        """Look rows up.

        Args:
            keys: Row keys, in any order; repeats are allowed.

        Returns:
            The rows that are there, by key.

        Raises:
            InputError: A key is not 16 bytes.
            CacheCorruptedError: The store or one of these rows is damaged.
        """

    def put_many(self, rows: Mapping[bytes, CachedRationale], *, fingerprint: bytes) -> None:
        """Store rows, all or none. A row that is there already stays as it is.

        A store that cannot be written warns once and goes on without storing.

        Args:
            rows: Rows by key.
            fingerprint: Digest of the fingerprint they were made under.

        Raises:
            InputError: A key, the digest or a row cannot be stored by any cache.
            CacheCorruptedError: The store is damaged.
        """

    def __len__(self) -> int:
        """Number of rows."""

    def stats(self) -> CacheStats:
        """Sizes and counters."""

    def clear(self, fingerprint: bytes | None = None) -> int:
        """Remove rows.

        Args:
            fingerprint: Remove only the rows of this fingerprint digest; None removes all.

        Returns:
            Number of rows removed.
        """

    def rows(self) -> Iterator[tuple[bytes, bytes, CachedRationale, float]]:
        """Stream all rows, oldest first, as key, fingerprint digest, row and creation in unix seconds."""

    def verify(self) -> VerifyReport:
        """Read everything and compares every checksum."""

    def close(self) -> None:
        """Release files and connections; the next use opens them again."""
