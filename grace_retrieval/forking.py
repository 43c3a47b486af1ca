"""Keeps locks and database connections whole across `fork`.

A forked child inherits locks that another thread holds and will never release, and SQLite connections that
two processes must not share. Objects registered here are brought to rest before each fork and woken on both
sides of it.
"""

from __future__ import annotations

import os
import threading
from typing import Protocol
from weakref import WeakSet

__all__ = ["ForkAware", "ForkSafeLock", "protect"]


class ForkAware(Protocol):
    """An object that can be brought to rest around a fork."""

    def before_fork(self) -> None:
        """Wait until no other thread is inside, and keeps them out."""

    def after_fork(self) -> None:
        """Let threads in again; called in the parent and in the child."""


_lock = threading.RLock()
_objects: WeakSet[ForkAware] = WeakSet()
_resting: list[ForkAware] = []


def protect(item: ForkAware) -> None:
    """Register an object for as long as it lives.

    Args:
        item: The object; it is held weakly.
    """
    with _lock:
        _objects.add(item)


class ForkSafeLock:
    """A re-entrant lock for `with`, which no thread of the parent can leave locked in a forked child."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        protect(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()

    def before_fork(self) -> None:
        """Wait until no other thread holds it."""
        self._lock.acquire()

    def after_fork(self) -> None:
        """Let threads in again."""
        self._lock.release()


def _before() -> None:
    # Held until after the fork: two threads that fork at once would otherwise wait for each other's objects.
    _lock.acquire()
    for item in list(_objects):
        item.before_fork()
        _resting.append(item)


def _after() -> None:
    while _resting:
        _resting.pop().after_fork()
    _lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)
