"""One SQLite connection for each process and thread, opened when needed and closed before a fork."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakSet

from grace_retrieval.cache.codec import DamagedRowError
from grace_retrieval.cache.schema import CacheUnavailableError, create, mend, open_file
from grace_retrieval.errors import CacheCorruptedError, CacheError
from grace_retrieval.forking import protect

__all__ = ["ConnectionPool"]

# Connections that came through a fork unseen (made outside Python). Closing one in the child could end the
# parent's log, so they are kept for ever instead.
_inherited: list[sqlite3.Connection] = []

_FORK_WAIT_S = 60.0

_Signature = tuple[int, ...]


class _Handle:
    """A connection with what is needed to know whether it is still the right one."""

    def __init__(self, raw: sqlite3.Connection, frozen: bool, signature: _Signature | None) -> None:
        self.raw: sqlite3.Connection | None = raw
        self.frozen = frozen
        self.signature = signature
        self.pid = os.getpid()
        self.lock = threading.RLock()
        self.busy = False

    def close(self) -> None:
        if self.pid != os.getpid():
            # Here the lock may be held for ever by a thread that did not come along.
            if self.raw is not None:
                _inherited.append(self.raw)
            self.raw = None
            return
        with self.lock:
            if self.raw is not None:
                self.raw.close()
            self.raw = None

    def __del__(self) -> None:
        self.close()


class ConnectionPool:
    """Hands each thread its own connection to one file.

    A connection is opened again when the file at the path is no longer the one it was opened on, for instance
    because someone deleted the cache while the process ran.

    Args:
        path: The cache file.
        timeout_s: How long SQLite waits for locks, in seconds.

    Attributes:
        guard: A lock that is free again after a fork; also for the counters of the owner.
    """

    def __init__(self, path: Path, timeout_s: float) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._local = threading.local()
        self.guard = threading.RLock()
        self._opening = threading.RLock()
        self._handles: WeakSet[_Handle] = WeakSet()
        self._held: list[_Handle] = []
        protect(self)

    def exists(self) -> bool:
        """Whether the file is there."""
        return self._signature(False) is not None

    @contextmanager
    def use(self, *, make: bool = False) -> Iterator[sqlite3.Connection]:
        """Lend this thread's connection and translate SQLite's errors.

        Args:
            make: Make the file if it is missing.

        Yields:
            The connection, in autocommit mode.

        Raises:
            CacheCorruptedError: The file is damaged.
            CacheUnavailableError: The file cannot be reached, written or locked.
            CacheError: The file is not ours.
        """
        handle: _Handle | None = None
        try:
            handle, raw = self._acquire(make)
            yield raw
        except (sqlite3.Error, UnicodeDecodeError, DamagedRowError) as error:
            translated = translate(error, self._path)
            if handle is not None and isinstance(translated, CacheCorruptedError):
                # The file may be exchanged for a good one; keep no page of this one.
                handle.close()
            raise translated from error
        except OSError as error:
            raise CacheUnavailableError(f"{self._path} cannot be used: {error}") from error
        finally:
            if handle is not None:
                handle.busy = False
                handle.lock.release()

    def close_all(self) -> None:
        """Close the connections of all threads; each opens a new one at its next use."""
        with self.guard:
            handles = list(self._handles)
        for handle in handles:
            with handle.lock:
                handle.close()

    def before_fork(self) -> None:
        """Wait for running statements and close all connections: they must not be carried across a fork."""
        # SQLite holds locks of its own while it opens a file, so no thread may be doing that either.
        self._opening.acquire()
        self.guard.acquire()
        for handle in list(self._handles):
            if handle.lock.acquire(timeout=_FORK_WAIT_S):
                self._held.append(handle)
                # Busy here means busy in this very thread, a signal handler that forks for instance.
                if not handle.busy:
                    handle.close()

    def after_fork(self) -> None:
        """Let threads in again."""
        while self._held:
            self._held.pop().lock.release()
        self.guard.release()
        self._opening.release()

    def _acquire(self, make: bool) -> tuple[_Handle, sqlite3.Connection]:
        while True:
            handle: _Handle | None = getattr(self._local, "handle", None)
            if handle is None or handle.pid != os.getpid() or handle.signature != self._signature(handle.frozen):
                if handle is not None:
                    handle.close()
                with self._opening:
                    handle = self._open(make)
            handle.lock.acquire()
            if handle.raw is not None:
                handle.busy = True
                return handle, handle.raw
            # Closed between two statements, by close_all or before a fork.
            handle.lock.release()
            self._local.handle = None

    def _open(self, make: bool) -> _Handle:
        if make and not self.exists():
            create(self._path)
        before = self._signature(False)
        opened = open_file(self._path, self._timeout_s)
        signature = self._signature(opened.frozen) if opened.frozen else before
        handle = _Handle(opened.raw, opened.frozen, signature)
        with self.guard:
            self._handles.add(handle)
        self._local.handle = handle
        return handle

    def _signature(self, frozen: bool) -> _Signature | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        identity = (status.st_dev, status.st_ino)
        # Without locks nobody tells us of a change, so size and time have to.
        return (*identity, status.st_size, status.st_mtime_ns) if frozen else identity


def translate(error: sqlite3.Error | UnicodeDecodeError | DamagedRowError, path: Path) -> CacheError:
    """Turn an error of SQLite into one of ours.

    Args:
        error: What was raised; a UnicodeDecodeError if SQLite's message quotes damaged bytes.
        path: The cache file, for the message.

    Returns:
        CacheCorruptedError for damage, otherwise CacheUnavailableError.
    """
    text = str(error)
    # SQLite's codes for damage come as DatabaseError itself; what a damaged schema or record header leads to
    # comes as one of the subclasses.
    signs = ("no such table", "no such column", "malformed", "decode", "constraint failed")
    if (
        not isinstance(error, sqlite3.Error)
        or type(error) is sqlite3.DatabaseError
        or any(sign in text for sign in signs)
    ):
        advice = mend(path, ours="not a database" not in text)
        return CacheCorruptedError(f"{path} is damaged ({text}). {advice}")
    # "database is locked" and "locking protocol"
    return CacheUnavailableError(f"{path} cannot be used ({text})", busy="lock" in text)
