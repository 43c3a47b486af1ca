"""Files that are whole or not there, and a lock that ends with its process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from grace_retrieval.errors import InputError

__all__ = ["locked", "replacing", "sync_folder"]


@contextmanager
def replacing(path: Path, *, temporary: Path | None = None) -> Iterator[Path]:
    """Give a temporary name, and rename it to `path` when the block is done and the bytes are on the disk.

    Args:
        path: The file that is to be there in the end.
        temporary: Another temporary name than `path` with `.tmp`; on the same file system.

    Raises:
        OSError: If the file cannot be written; the temporary one is removed.
    """
    temporary = temporary or path.with_name(f"{path.name}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
    with suppress(OSError):  # Windows opens no folders, and some network file systems sync none
        file = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Keep other processes out while a block runs. The system takes the lock back from a process that ended.

    Args:
        path: Lock file; it holds the number of the process that has the lock.
        what: What is being written, for the message.

    Raises:
        InputError: If another process has the lock.
        OSError: If the file cannot be made.
    """
    while True:
        with open(path, "a+b") as lock:
            _lock(lock.fileno(), path, what)
            if _replaced(lock.fileno(), path):
                continue  # its last owner removed the file while this process was opening it
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n".encode())
            lock.flush()
            yield
            return


def _lock(file: int, path: Path, what: str) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = path.read_text(encoding="utf-8", errors="replace").strip() or "?"
        raise InputError(
            f"Another process is writing {what} (process {owner}): wait for it, or give another output."
        ) from error
    except OSError:  # a network file system without locks
        return


def _replaced(file: int, path: Path) -> bool:
    try:
        return not os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return True
