"""What the cache file says about itself: groups of rows, ages, and whether everything fits together."""

from __future__ import annotations

import json
import sqlite3

from grace_retrieval.cache.base import FingerprintStats
from grace_retrieval.cache.codec import DamagedRowError

__all__ = ["creation_times", "groups", "inconsistencies"]


def groups(raw: sqlite3.Connection) -> tuple[FingerprintStats, ...]:
    """Rows and bytes of each fingerprint, from the counters.

    Args:
        raw: The connection.

    Returns:
        One entry a fingerprint that has rows, largest first.

    Raises:
        DamagedRowError: A counter or description is not what was written.
    """
    query = "SELECT digest, description, rows, bytes FROM fingerprints WHERE rows > 0 ORDER BY bytes DESC"
    try:
        return tuple(
            FingerprintStats(
                digest=digest.hex(),
                description=None if description is None else json.loads(description),
                rows=rows + 0,
                bytes=size + 0,
            )
            for digest, description, rows, size in raw.execute(query)
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise DamagedRowError(f"the table of fingerprints is damaged ({error})") from error


def creation_times(raw: sqlite3.Connection) -> tuple[float | None, float | None]:
    """Creation of the first and the last row stored.

    Args:
        raw: The connection.

    Returns:
        Unix seconds, or None twice if there are no rows.

    Raises:
        DamagedRowError: A time is not what was written.
    """
    # Ids grow with time, so this reads two rows where MIN and MAX would read all.
    oldest = raw.execute("SELECT created FROM entries ORDER BY id ASC LIMIT 1").fetchone()
    newest = raw.execute("SELECT created FROM entries ORDER BY id DESC LIMIT 1").fetchone()
    times = [row[0] for row in (oldest, newest) if row]
    if not all(isinstance(created, float) for created in times):
        raise DamagedRowError(f"a time of creation is damaged: {times}")
    return (times[0], times[-1]) if times else (None, None)


def inconsistencies(raw: sqlite3.Connection) -> list[str]:
    """Run SQLite's own check and compares tables and counters.

    Args:
        raw: The connection.

    Returns:
        One line a problem.
    """
    # One snapshot: without it a row stored between two queries would look like a wrong counter.
    raw.execute("BEGIN")
    try:
        lines = [line for (line,) in raw.execute("PRAGMA integrity_check(20)") if line != "ok"]
        problems = [f"SQLite: {line}" for line in lines]
        query = "SELECT COUNT(*) FROM payloads WHERE id NOT IN (SELECT id FROM entries)"
        lone = raw.execute(query).fetchone()[0]
        if lone:
            problems.append(f"{lone} payloads belong to no row")
        counted = set(raw.execute("SELECT fingerprint, COUNT(*), SUM(size) FROM entries GROUP BY fingerprint"))
        if counted != set(raw.execute("SELECT digest, rows, bytes FROM fingerprints WHERE rows > 0")):
            problems.append("the counters of rows and bytes differ from the rows")
    finally:
        if raw.in_transaction:
            raw.execute("ROLLBACK")
    return problems
