"""The rationale cache on disk: one SQLite file that many threads and processes share."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from grace_retrieval.cache import inspection, statements
from grace_retrieval.cache.base import CacheStats, FingerprintStats, VerifyReport
from grace_retrieval.cache.codec import DamagedRowError, EncodedRow, check_digests
from grace_retrieval.cache.gate import WriteGate
from grace_retrieval.cache.limits import check_max_bytes
from grace_retrieval.cache.pool import ConnectionPool
from grace_retrieval.cache.records import CachedRationale
from grace_retrieval.cache.schema import CacheUnavailableError, mend, remove_damaged
from grace_retrieval.cache.statements import impatient, transaction
from grace_retrieval.errors import CacheCorruptedError, CacheError, InputError
from grace_retrieval.fingerprint import Fingerprint

__all__ = ["SQLiteCache"]

_MAX_PENDING_USES = 4096


class SQLiteCache:
    """Rationales in an SQLite file.

    The file is made by the first `put_many`; until then the cache is empty and touches no disk. A stored row
    survives the death of any process; a power cut may take the last rows, but leaves the file whole. A hit is
    noted in memory if the row's last noted use is older than `recency_s`, and is written with the next
    `put_many` or `close`, or when 4096 have come together; a process that dies before loses that order only.

    Pickles and copies carry path and limits, never a connection. A file that is damaged or not ours is
    refused and stays as it is. One that cannot be written gives a single `CacheWarning`; this object then
    only reads. The file must be on a local disk: SQLite's log does not work across hosts.

    Args:
        path: The file; its name usually ends in `.sqlite`.
        max_bytes: Limit for the rows in bytes; the least recently used go when it is passed. The file itself
            is larger, by a tenth for vectors of 1024 numbers, by half at worst.
        timeout_s: How long to wait for other processes' locks, in seconds.
        recency_s: Age in seconds from which a use is noted again; 0 notes every hit.

    Raises:
        InputError: The path is empty or a folder, or a limit is out of range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_bytes: int = 10 << 30,
        timeout_s: float = 30.0,
        recency_s: float = 3600.0,
    ) -> None:
        if not os.fspath(path):
            raise InputError("the cache path is empty")
        # Absolute, so that workers and later changes of the folder mean the same file.
        self._path = Path(os.path.abspath(os.path.expanduser(path)))
        if self._path.is_dir():
            raise InputError(f"{self._path} is a folder; give a file in it, or use open_cache")
        if timeout_s < 0 or recency_s < 0:
            raise InputError(f"timeout_s={timeout_s!r}, recency_s={recency_s!r}: give 0 or more.")
        self._max_bytes = check_max_bytes(max_bytes)
        self._timeout_s = timeout_s
        self._recency_s = recency_s
        self._pool = ConnectionPool(self._path, timeout_s)
        self._gate = WriteGate()
        # Single operations on these dicts are atomic, so no lock has to be carried across a fork.
        self._descriptions: dict[bytes, str] = {}
        self._pending_uses: dict[bytes, None] = {}
        self._hits = 0
        self._misses = 0

    @property
    def path(self) -> Path:
        """The file, absolute."""
        return self._path

    @property
    def max_bytes(self) -> int:
        """Limit for the rows in bytes."""
        return self._max_bytes

    def __repr__(self) -> str:
        return f"SQLiteCache({str(self._path)!r}, max_bytes={self._max_bytes})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (str(self._path), self._max_bytes, self._timeout_s, self._recency_s))

    def __enter__(self) -> SQLiteCache:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __len__(self) -> int:
        if not self._pool.exists():
            return 0
        with self._pool.use() as raw:
            return statements.totals(raw)[0]

    def check(self) -> None:
        """Open the file if it is there, so that an unusable one is refused now and not at the first row.

        Raises:
            CacheCorruptedError: The file is damaged.
            CacheError: The file is not a cache of this version, or cannot be read.
        """
        if self._pool.exists():
            with self._pool.use():
                pass

    def register(self, fingerprint: Fingerprint) -> None:
        """Remember what a fingerprint's digest stands for; written with its next rows."""
        # ASCII, because SQLite's text cannot hold lone surrogates.
        self._descriptions[fingerprint.digest()] = json.dumps(fingerprint.describe(), sort_keys=True)

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, CachedRationale]:
        """Look rows up, comparing the checksum of each; see `RationaleCache.get_many`.

        Raises:
            InputError: A key is not 16 bytes.
            CacheCorruptedError: The file or one of these rows is damaged.
            CacheError: The file is not ours or cannot be read.
        """
        unique = list(dict.fromkeys(keys))
        check_digests(unique, "a row key")
        found: dict[bytes, CachedRationale] = {}
        if unique and self._pool.exists():
            stale = time.time() - self._recency_s
            with self._pool.use() as raw:
                for row in statements.fetch(raw, unique):
                    found[row.key] = self._trusted(row)
                    if row.is_unused_since(stale):
                        self._pending_uses[row.key] = None
            if len(self._pending_uses) >= _MAX_PENDING_USES:
                self._flush_uses()
        with self._pool.guard:
            self._hits += len(found)
            self._misses += len(unique) - len(found)
        return found

    def put_many(self, rows: Mapping[bytes, CachedRationale], *, fingerprint: bytes) -> None:
        """Store rows in one transaction; see `RationaleCache.put_many`.

        Raises:
            InputError: A key, the digest or a row cannot be stored.
            CacheCorruptedError: The file is damaged.
            CacheError: The file is not ours.
        """
        check_digests((fingerprint,), "a fingerprint digest")
        check_digests(rows, "a row key")
        encoded = {key: EncodedRow.encode(row) for key, row in rows.items()}
        if not encoded or not self._gate.is_open:
            return
        try:
            with self._pool.use(make=True) as raw, transaction(raw):
                statements.note_uses(raw, self._take_uses())
                statements.store(raw, encoded, fingerprint, self._descriptions.get(fingerprint))
                statements.shrink(raw, self._max_bytes)
        except CacheUnavailableError as error:
            self._gate.shut(error, stacklevel=2)

    def stats(self) -> CacheStats:
        """Sizes from the file's counters, and how often this object was asked.

        Raises:
            CacheError: The file is damaged, not ours or cannot be read.
        """
        groups: tuple[FingerprintStats, ...] = ()
        oldest, newest, file_bytes = None, None, 0
        if self._pool.exists():
            with self._pool.use() as raw:
                groups = inspection.groups(raw)
                oldest, newest = inspection.creation_times(raw)
                file_bytes = self._path.stat().st_size
        return CacheStats(
            rows=sum(group.rows for group in groups),
            bytes=sum(group.bytes for group in groups),
            max_bytes=self._max_bytes,
            path=str(self._path),
            file_bytes=file_bytes,
            by_fingerprint=groups,
            oldest_created=oldest,
            newest_created=newest,
            hits=self._hits,
            misses=self._misses,
        )

    def clear(self, fingerprint: bytes | None = None) -> int:
        """Remove the rows of one fingerprint digest, or all, and shortens the file.

        If all are to go, a damaged cache file is deleted, and 0 returned because its rows cannot be counted.

        Raises:
            InputError: The digest is not 16 bytes.
            CacheCorruptedError: The file is damaged and not recognisable, or one fingerprint was asked for.
            CacheError: The file is not ours or cannot be written.
        """
        if fingerprint is not None:
            check_digests((fingerprint,), "a fingerprint digest")
        if not self._pool.exists():
            return 0
        try:
            with self._pool.use() as raw:
                with transaction(raw):
                    count = statements.clear(raw, fingerprint)
                statements.give_space_back(raw)
                return count
        except CacheCorruptedError:
            if fingerprint is not None:
                raise
        self._pool.close_all()
        remove_damaged(self._path)
        return 0

    def delete_many(self, keys: Sequence[bytes]) -> int:
        """Remove single rows; keys that are not there are ignored.

        Returns:
            Number of rows removed; 0 if the file cannot be written, which gives a `CacheWarning`.

        Raises:
            InputError: A key is not 16 bytes.
            CacheError: The file is damaged or not ours.
        """
        unique = list(dict.fromkeys(keys))
        check_digests(unique, "a row key")
        if not unique or not self._gate.is_open or not self._pool.exists():
            return 0
        try:
            with self._pool.use() as raw, transaction(raw):
                return statements.delete(raw, unique)
        except CacheUnavailableError as error:
            self._gate.shut(error, stacklevel=2)
            return 0

    def rows(self) -> Iterator[tuple[bytes, bytes, CachedRationale, float]]:
        """Stream all rows, oldest first; no lock is held between two rows.

        Yields:
            Key, fingerprint digest, row and creation in unix seconds.

        Raises:
            CacheCorruptedError: The file or a row is damaged.
            CacheError: The file is not ours or cannot be read.
        """
        for row in self._stored_rows():
            yield row.key, row.fingerprint, self._trusted(row), row.created

    def verify(self) -> VerifyReport:
        """Read the whole file: SQLite's own check, every checksum, and the counters.

        Raises:
            CacheError: The file is not ours or cannot be read.
        """
        problems: list[str] = []
        checked = 0
        try:
            for row in self._stored_rows():
                checked += 1
                try:
                    row.verified()
                except DamagedRowError as error:
                    problems.append(f"{error} (id {row.id})")
            if self._pool.exists():
                with self._pool.use() as raw:
                    problems += inspection.inconsistencies(raw)
        except CacheCorruptedError as error:
            problems.append(str(error))
        return VerifyReport(rows=checked, problems=tuple(problems))

    def close(self) -> None:
        """Write noted uses and closes the connections of all threads; the next use opens them again."""
        self._flush_uses()
        self._pool.close_all()

    def _stored_rows(self) -> Iterator[statements.StoredRow]:
        last = 0
        while self._pool.exists():
            # A page at a time: an open cursor would keep the log from being folded in, and forks waiting.
            with self._pool.use() as raw:
                rows = statements.page(raw, last, 200)
            if not rows:
                return
            yield from rows
            if rows[-1].id <= last:
                raise CacheCorruptedError(f"{self._path} is damaged (ids out of order). {mend(self._path)}")
            last = rows[-1].id

    def _trusted(self, row: statements.StoredRow) -> CachedRationale:
        try:
            return row.verified()
        except DamagedRowError as error:
            raise CacheCorruptedError(f"{error} in {self._path}. {mend(self._path)}") from error

    def _take_uses(self) -> list[bytes]:
        uses = list(self._pending_uses)
        for key in uses:
            self._pending_uses.pop(key, None)
        return uses

    def _flush_uses(self) -> None:
        uses = self._take_uses()
        if not uses or not self._gate.is_open or not self._pool.exists():
            return
        try:
            with self._pool.use() as raw, impatient(raw, self._timeout_s), transaction(raw):
                statements.note_uses(raw, uses)
        except CacheError:
            pass  # Only the order of use is lost, and a read must neither wait nor fail for it.


def _rebuild(path: str, max_bytes: int, timeout_s: float, recency_s: float) -> SQLiteCache:
    return SQLiteCache(path, max_bytes=max_bytes, timeout_s=timeout_s, recency_s=recency_s)
