"""The SQL of the cache file, as functions on an open connection. Only `transaction` begins and ends one."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from grace_retrieval.cache.codec import DamagedRowError, EncodedRow
from grace_retrieval.cache.limits import low_water
from grace_retrieval.cache.records import CachedRationale

__all__ = [
    "StoredRow",
    "clear",
    "fetch",
    "give_space_back",
    "impatient",
    "note_uses",
    "page",
    "shrink",
    "store",
    "totals",
    "transaction",
]

_CHUNK = 500
_COLUMNS = (
    "e.key, e.fingerprint, e.created, e.used, p.finish_reason, p.token_ids, p.text, p.vector, p.checksum,"
    " e.id FROM entries e LEFT JOIN payloads p ON p.id = e.id"
)


class StoredRow(NamedTuple):
    """A row as it lies in the file, not yet trusted."""

    key: bytes
    fingerprint: bytes
    created: float
    used: object
    finish_reason: str
    token_ids: bytes
    text: bytes
    vector: bytes
    checksum: bytes
    id: int

    def is_unused_since(self, moment: float) -> bool:
        """Whether the row's last noted use is older than a moment.

        Args:
            moment: Unix seconds.

        Returns:
            True also if the time is unreadable: noting a new one mends that.
        """
        # No part of the checksum, because it changes.
        return not isinstance(self.used, float) or self.used < moment

    def verified(self) -> CachedRationale:
        """Decode the row after comparing its checksum.

        Returns:
            The row.

        Raises:
            DamagedRowError: It differs from what was written.
        """
        encoded = EncodedRow(self.finish_reason, self.token_ids, self.text, self.vector)
        return encoded.verified(self.key, self.fingerprint, self.created, self.checksum)


@contextmanager
def transaction(raw: sqlite3.Connection) -> Iterator[None]:
    """Run a block as one transaction that holds the write lock from its start.

    Args:
        raw: The connection.

    Yields:
        Nothing; the block's changes are kept as a whole or not at all.
    """
    # IMMEDIATE waits for the lock here. A transaction that starts by reading can only fail when it turns to
    # writing after another writer.
    raw.execute("BEGIN IMMEDIATE")
    try:
        yield
        raw.execute("COMMIT")
    except BaseException:
        # SQLite has rolled back by itself after some errors, a full disk among them.
        if raw.in_transaction:
            raw.execute("ROLLBACK")
        raise


@contextmanager
def impatient(raw: sqlite3.Connection, timeout_s: float) -> Iterator[None]:
    """Let a block fail at once instead of waiting for other processes' locks.

    Args:
        raw: The connection.
        timeout_s: The patience to go back to, in seconds.

    Yields:
        Nothing.
    """
    raw.execute("PRAGMA busy_timeout=0")
    try:
        yield
    finally:
        raw.execute(f"PRAGMA busy_timeout={int(timeout_s * 1000)}")


def fetch(raw: sqlite3.Connection, keys: Sequence[bytes]) -> Iterator[StoredRow]:
    """Read rows by key.

    Args:
        raw: The connection.
        keys: Row keys without repeats.

    Yields:
        The rows that are there.
    """
    for part, marks in _chunks(keys):
        yield from map(StoredRow._make, raw.execute(f"SELECT {_COLUMNS} WHERE e.key IN ({marks})", part))


def page(raw: sqlite3.Connection, after: int, count: int) -> list[StoredRow]:
    """Read the next rows in the order in which they were stored.

    Args:
        raw: The connection.
        after: Id of the last row seen, 0 at the start.
        count: Number of rows.

    Returns:
        At most `count` rows.
    """
    cursor = raw.execute(f"SELECT {_COLUMNS} WHERE e.id > ? ORDER BY e.id LIMIT ?", (after, count))
    return [StoredRow._make(row) for row in cursor]


def store(
    raw: sqlite3.Connection, rows: Mapping[bytes, EncodedRow], fingerprint: bytes, description: str | None
) -> None:
    """Insert the rows that are not there yet, inside a transaction.

    Args:
        raw: The connection.
        rows: Encoded rows by key.
        fingerprint: Digest they belong to.
        description: JSON text of the fingerprint, if known.
    """
    there: set[bytes] = set()
    for part, marks in _chunks(list(rows)):
        there.update(key for (key,) in raw.execute(f"SELECT key FROM entries WHERE key IN ({marks})", part))
    now = time.time()
    first = raw.execute("SELECT COALESCE(MAX(id), 0) + 1 FROM entries").fetchone()[0]
    fresh = [(key, row) for key, row in rows.items() if key not in there]
    new = [(number, key, row) for number, (key, row) in enumerate(fresh, start=first)]
    raw.executemany(
        "INSERT INTO entries (id, key, fingerprint, size, created, used) VALUES (?, ?, ?, ?, ?, ?)",
        ((number, key, fingerprint, row.size, now, now) for number, key, row in new),
    )
    raw.executemany(
        "INSERT INTO payloads (id, finish_reason, token_ids, text, vector, checksum) VALUES (?, ?, ?, ?, ?, ?)",
        ((number, *row, row.checksum(key, fingerprint, now)) for number, key, row in new),
    )
    raw.execute(
        "INSERT INTO fingerprints (digest, description, rows, bytes) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (digest) DO UPDATE SET description = COALESCE(excluded.description, description),"
        " rows = rows + excluded.rows, bytes = bytes + excluded.bytes",
        (fingerprint, description, len(new), sum(row.size for _, _, row in new)),
    )


def note_uses(raw: sqlite3.Connection, keys: Iterable[bytes]) -> None:
    """Mark rows as used now, inside a transaction.

    Args:
        raw: The connection.
        keys: Row keys; those that are gone are ignored.
    """
    now = time.time()
    raw.executemany("UPDATE entries SET used = ? WHERE key = ?", ((now, key) for key in keys))


def shrink(raw: sqlite3.Connection, max_bytes: int) -> None:
    """Delete the least recently used rows if the limit is passed, inside a transaction.

    Freed pages stay in the file and take the next rows, so the file stops growing at the limit.

    Args:
        raw: The connection.
        max_bytes: The limit in bytes.

    Raises:
        DamagedRowError: A size is not what was written.
    """
    excess = totals(raw)[1]
    if excess <= max_bytes:
        return
    excess -= low_water(max_bytes)
    gone: list[tuple[int, bytes, int]] = []
    cursor = raw.execute("SELECT id, fingerprint, size FROM entries ORDER BY used, id")
    for number, fingerprint, size in cursor:
        if excess <= 0:
            break
        if not isinstance(size, int):
            raise DamagedRowError(f"the size of row {number} is damaged")
        gone.append((number, fingerprint, size))
        excess -= size
    cursor.close()
    _delete(raw, gone)


def delete(raw: sqlite3.Connection, keys: Sequence[bytes]) -> int:
    """Delete single rows, inside a transaction.

    Args:
        raw: The connection.
        keys: Row keys without repeats; those that are not there are ignored.

    Returns:
        Number of rows deleted.
    """
    gone: list[tuple[int, bytes, int]] = []
    for part, marks in _chunks(keys):
        gone += raw.execute(f"SELECT id, fingerprint, size FROM entries WHERE key IN ({marks})", part).fetchall()
    _delete(raw, gone)
    return len(gone)


def _delete(raw: sqlite3.Connection, rows: Sequence[tuple[int, bytes, int]]) -> None:
    """Delete rows given by id, fingerprint and size, and counts them off."""
    ids = [(number,) for number, _, _ in rows]
    freed: dict[bytes, list[int]] = {}
    for _, fingerprint, size in rows:
        group = freed.setdefault(fingerprint, [0, 0])
        group[0] += 1
        group[1] += size
    raw.executemany("DELETE FROM payloads WHERE id = ?", ids)
    raw.executemany("DELETE FROM entries WHERE id = ?", ids)
    raw.executemany(
        "UPDATE fingerprints SET rows = rows - ?, bytes = bytes - ? WHERE digest = ?",
        [(rows, size, fingerprint) for fingerprint, (rows, size) in freed.items()],
    )
    raw.execute("DELETE FROM fingerprints WHERE rows = 0")


def totals(raw: sqlite3.Connection) -> tuple[int, int]:
    """Number of rows and their bytes, from the counters.

    Args:
        raw: The connection.

    Returns:
        Rows and bytes.
    """
    query = "SELECT COALESCE(SUM(rows), 0), COALESCE(SUM(bytes), 0) FROM fingerprints"
    rows, size = raw.execute(query).fetchone()
    # Damaged counters may sum up to a float.
    return int(rows), int(size)


def clear(raw: sqlite3.Connection, fingerprint: bytes | None) -> int:
    """Delete rows, inside a transaction.

    Args:
        raw: The connection.
        fingerprint: Digest whose rows go; None for all.

    Returns:
        Number of rows deleted.
    """
    if fingerprint is None:
        raw.execute("DELETE FROM payloads")
        count = raw.execute("DELETE FROM entries").rowcount
        raw.execute("DELETE FROM fingerprints")
    else:
        owned: tuple[Any, ...] = (fingerprint,)
        raw.execute("DELETE FROM payloads WHERE id IN (SELECT id FROM entries WHERE fingerprint = ?)", owned)
        count = raw.execute("DELETE FROM entries WHERE fingerprint = ?", owned).rowcount
        raw.execute("DELETE FROM fingerprints WHERE digest = ?", owned)
    return count


def give_space_back(raw: sqlite3.Connection) -> None:
    """Shorten the file by its free pages, outside a transaction.

    Args:
        raw: The connection.
    """
    # Each step frees one page, and execute() takes only one; executescript() goes on to the end.
    raw.executescript("PRAGMA incremental_vacuum")
    raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _chunks(keys: Sequence[bytes]) -> Iterator[tuple[Sequence[bytes], str]]:
    for start in range(0, len(keys), _CHUNK):
        part = keys[start : start + _CHUNK]
        yield part, ",".join("?" * len(part))
