"""The cache file: its tables, how it is made, how it is recognised and when it is refused."""

from __future__ import annotations

import os
import secrets
import shlex
import sqlite3
from pathlib import Path
from typing import NamedTuple

from grace_retrieval.errors import CacheCorruptedError, CacheError

__all__ = [
    "APPLICATION_ID",
    "SCHEMA_VERSION",
    "CacheUnavailableError",
    "Opened",
    "create",
    "mend",
    "open_file",
    "remove_damaged",
]

APPLICATION_ID = int.from_bytes(b"GRCE", "big")
SCHEMA_VERSION = 1

# The small table holds all that lookups of age, size and owner need, so that noting a use or choosing what to
# evict never touches the pages with the payloads.
_TABLES = """
CREATE TABLE entries (
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE,
    fingerprint BLOB NOT NULL,
    size INTEGER NOT NULL,
    created REAL NOT NULL,
    used REAL NOT NULL
);
CREATE INDEX entries_by_use ON entries (used);
CREATE TABLE payloads (
    id INTEGER PRIMARY KEY,
    finish_reason TEXT NOT NULL,
    token_ids BLOB NOT NULL,
    text BLOB NOT NULL,
    vector BLOB NOT NULL,
    checksum BLOB NOT NULL
);
CREATE TABLE fingerprints (
    digest BLOB PRIMARY KEY,
    description TEXT,
    rows INTEGER NOT NULL,
    bytes INTEGER NOT NULL
);
"""


class CacheUnavailableError(CacheError):
    """The file cannot be reached, written or locked right now; nothing says that it is damaged.

    Args:
        message: What happened.
        busy: Another process held the file for longer than the timeout.
    """

    def __init__(self, message: str, *, busy: bool = False) -> None:
        super().__init__(message)
        self.busy = busy


class Opened(NamedTuple):
    """A connection to a cache file.

    Attributes:
        raw: The connection, in autocommit mode.
        frozen: Opened without locks, because neither the file nor its folder can be written.
    """

    raw: sqlite3.Connection
    frozen: bool


def mend(path: Path, *, ours: bool = True) -> str:
    """How to mend a damaged cache file.

    Args:
        path: The file.
        ours: Whether it can be recognised as a cache; `clear` deletes no other file.

    Returns:
        Sentences with the commands.
    """
    quoted, moved = shlex.quote(str(path)), shlex.quote(f"{path}.damaged")
    move = f"`mv {quoted} {moved}` (and its -wal and -shm files, if there are any)"
    if not ours:
        return f"Nothing was changed. Mend: move it away with {move}."
    clear = f"`grace cache clear --cache {quoted}`"
    return f"Nothing was changed. Mend: start anew with {clear}, or keep the file with {move}."


def create(path: Path) -> None:
    """Make an empty cache file, whole or not at all.

    The file is made under another name and then linked into place: no process ever sees half a file, and when
    several processes start at once the first one wins and the others use its file.

    Args:
        path: Where the file shall be; missing folders are made.

    Raises:
        CacheError: A write-ahead log without its file lies there.
        OSError: The folder cannot be written.
        sqlite3.Error: The file cannot be written.
    """
    # Texts may be private, so a folder made here is for its owner only.
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    wal = _beside(path, "-wal")
    # The second look: another process may have made the file and its log since the first.
    if not path.exists() and wal.exists() and not path.exists():
        raise CacheError(
            f"{wal} is there but {path} is not; SQLite would play the old log into a new file. Nothing was"
            " changed. Mend: move the file back beside its log, or delete the log."
        )
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.new")
    try:
        raw = _connect(_uri(draft, "rwc"), 0.0)
        try:
            raw.execute("PRAGMA page_size=16384")
            # Lets clear() give space back without the second copy of the file that VACUUM needs.
            raw.execute("PRAGMA auto_vacuum=INCREMENTAL")
            raw.executescript(
                f"BEGIN; PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={SCHEMA_VERSION};"
                f" {_TABLES} COMMIT;"
            )
            raw.execute("PRAGMA journal_mode=WAL")
        finally:
            raw.close()
        _publish(draft, path)
    finally:
        for suffix in ("", "-journal", "-wal", "-shm"):
            _beside(draft, suffix).unlink(missing_ok=True)


def open_file(path: Path, timeout_s: float) -> Opened:
    """Open an existing file, after a look that cannot alter it.

    Args:
        path: The file.
        timeout_s: How long SQLite waits for locks, in seconds.

    Returns:
        The connection; it may turn out to be read-only at the first write.

    Raises:
        CacheCorruptedError: The file is empty or no SQLite database.
        CacheError: The file is another program's or a newer version's.
        sqlite3.Error: SQLite cannot open or read it.
    """
    if path.stat().st_size == 0:
        raise CacheCorruptedError(f"{path} is empty, which no cache file ever is. {mend(path, ours=False)}")
    frozen = False
    look = _connect(_uri(path, "ro"), timeout_s)
    try:
        _refuse_unless_ours(look, path)
    except sqlite3.OperationalError as error:
        look.close()
        # Reading a WAL file needs a place for its -shm file. Without a log nobody writes, so locks can be
        # left out.
        if "lock" in str(error) or _has_log(path):
            raise
        frozen = True
        look = _connect(f"{_uri(path, 'ro')}&immutable=1", timeout_s)
        try:
            _refuse_unless_ours(look, path)
        except BaseException:
            look.close()
            raise
    except BaseException:
        look.close()
        raise
    if frozen:
        return Opened(look, True)
    look.close()
    raw = _connect(_uri(path, "rw"), timeout_s)
    try:
        # NORMAL: a commit reaches the operating system before it is acknowledged, so killing processes loses
        # nothing. A power cut may lose the last commits, never the file; FULL would pay an fsync for each.
        raw.execute("PRAGMA synchronous=NORMAL")
        raw.execute("PRAGMA secure_delete=OFF")
        raw.execute("PRAGMA cache_size=-8192")
        raw.execute(f"PRAGMA journal_size_limit={64 << 20}")
    except BaseException:
        raw.close()
        raise
    return Opened(raw, False)


def remove_damaged(path: Path) -> None:
    """Delete a cache file that cannot be read any more, with its log; asked for by `clear`.

    Args:
        path: The file.

    Raises:
        CacheCorruptedError: The file does not start like one of ours, so it may be anything.
        CacheUnavailableError: The file cannot be deleted.
    """
    try:
        with open(path, "rb") as stream:
            header = stream.read(100)
        if header[:16] != b"SQLite format 3\0" or header[68:72] != APPLICATION_ID.to_bytes(4, "big"):
            raise CacheCorruptedError(
                f"{path} does not start like a cache, so it is not deleted. {mend(path, ours=False)}"
            )
        # The log first: a log without its file would be refused at the next start.
        for suffix in ("-wal", "-shm", ""):
            _beside(path, suffix).unlink(missing_ok=True)
    except OSError as error:
        raise CacheUnavailableError(f"{path} cannot be deleted: {error}") from error


def _refuse_unless_ours(raw: sqlite3.Connection, path: Path) -> None:
    application = raw.execute("PRAGMA application_id").fetchone()[0]
    version = raw.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID:
        raise CacheError(
            f"{path} is an SQLite database of another program (application_id {application}). Nothing was"
            " changed. Mend: give the cache another path, or move the file away."
        )
    if version != SCHEMA_VERSION:
        raise CacheError(
            f"{path} has schema {version}; this grace-retrieval reads schema {SCHEMA_VERSION}. Nothing was"
            " changed. Mend: install the version that made it, give the cache another path, or move the file"
            " away."
        )
    raw.execute("SELECT id FROM entries LIMIT 1").fetchone()


def _publish(draft: Path, path: Path) -> None:
    try:
        os.link(draft, path)
    except FileExistsError:
        return
    except OSError:
        # File systems without hard links. Renaming could replace a file made in this instant, hence the look.
        if not path.exists():
            os.rename(draft, path)


def _has_log(path: Path) -> bool:
    try:
        return _beside(path, "-wal").stat().st_size > 0
    except OSError:
        return False


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _uri(path: Path, mode: str) -> str:
    return f"{path.as_uri()}?mode={mode}"


def _connect(uri: str, timeout_s: float) -> sqlite3.Connection:
    # Another thread may close a connection, before a fork for instance; locks of our own see to the rest.
    return sqlite3.connect(uri, uri=True, timeout=timeout_s, isolation_level=None, check_same_thread=False)
