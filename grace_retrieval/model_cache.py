"""Model folders that are made once in the user's cache folder: from a GGUF file, from an adapter and its base.

A folder is called by the content of what it is made from. It appears as a whole or not at all, and processes that want
the same one wait for the first.
"""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from grace_retrieval.cache.opening import cache_folder
from grace_retrieval.errors import ModelLoadError

__all__ = ["made_once"]

logger = logging.getLogger(__name__)


def made_once(name: str, write: Callable[[Path], None], *, source: Path, size: Callable[[], int]) -> Path:
    """Make a model folder, or find the one that was made before.

    Args:
        name: What the folder is called; the same name must always mean the same content.
        write: Writes it into an empty place.
        source: What it is made from, for messages.
        size: Gives the bytes that it takes.

    Returns:
        The folder.

    Raises:
        ModelLoadError: If it cannot be written, or there is no space for it.
    """
    models = cache_folder() / "models"
    folder = models / name
    if folder.is_dir():
        return folder
    try:
        models.mkdir(parents=True, exist_ok=True)
        with FileLock(models / f".{name}.lock"):
            if not folder.is_dir():
                needed, free = size(), shutil.disk_usage(models).free
                if needed * 1.05 > free:
                    raise OSError(
                        errno.ENOSPC, f"it takes {needed / 1e9:.1f} GB there, and {free / 1e9:.1f} GB are free"
                    )
                logger.info("Converting %s into %s, once.", source, folder)
                part = folder.with_name(f".{name}.part")
                shutil.rmtree(part, ignore_errors=True)  # of a process that was killed: nobody else holds the lock
                try:
                    write(part)
                    part.rename(folder)
                finally:
                    shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        if isinstance(error, ModelLoadError):
            raise
        raise ModelLoadError(
            f"{source} cannot be converted into {models}: {error.strerror or error}. Set GRACE_CACHE_DIR to a folder "
            "that can be written."
        ) from error
    return folder
