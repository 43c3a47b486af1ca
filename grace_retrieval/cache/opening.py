"""From what a user writes for `cache=` to a cache."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from grace_retrieval.cache.base import CacheWarning, RationaleCache
from grace_retrieval.cache.memory import MemoryCache
from grace_retrieval.cache.schema import CacheUnavailableError
from grace_retrieval.cache.sqlite import SQLiteCache
from grace_retrieval.errors import InputError

__all__ = ["cache_folder", "cache_path", "clear_cache", "default_cache_path", "open_cache", "user_cache_folder"]

_FILE_NAME = "rationales.sqlite"
_FILE_SUFFIXES = (".sqlite", ".sqlite3", ".db")
# Words that other libraries take for "on" or "off"; a folder of that name would surprise.
_RESERVED = frozenset({"auto", "disk", "false", "no", "none", "off", "on", "sqlite", "true", "yes"})
_SPECS = "'default', 'memory', None, a folder, an .sqlite file, or an object with RationaleCache's methods"


def default_cache_path() -> Path:
    """The file that `"default"` means.

    Returns:
        `rationales.sqlite` in the cache folder.

    Raises:
        InputError: `$GRACE_CACHE_DIR` is a file, or a word that is no path.
        CacheError: The user has no folder for caches, as in some containers.
    """
    return cache_folder() / _FILE_NAME


def cache_folder() -> Path:
    """The folder for what can be made again: rationales, and models that were fetched or converted.

    Returns:
        `$GRACE_CACHE_DIR`, or the user's cache folder if that is unset or blank; absolute, it need not exist.

    Raises:
        InputError: `$GRACE_CACHE_DIR` is a file, or a word that is no path.
        CacheError: The user has no folder for caches, as in some containers.
    """
    folder = os.environ.get("GRACE_CACHE_DIR", "").strip()
    if folder.lower() in _RESERVED or folder == "memory":
        raise InputError(f"GRACE_CACHE_DIR={folder!r}: give a folder (write './{folder}' for one of that name).")
    path = Path(os.path.abspath(os.path.expanduser(folder))) if folder else user_cache_folder()
    if path.is_file():
        raise InputError(f"GRACE_CACHE_DIR={folder!r} is a file: give a folder; the cache is {_FILE_NAME} in it.")
    return path


def user_cache_folder() -> Path:
    """The user's own folder for what can be made again, whatever `$GRACE_CACHE_DIR` is.

    Raises:
        CacheError: The user has no folder for caches, as in some containers.
    """
    import platformdirs

    try:
        folder = platformdirs.user_cache_dir("grace-retrieval", appauthor=False)
    except (RuntimeError, KeyError) as error:  # containers whose user has no home
        raise CacheUnavailableError(
            f"there is no folder for caches ({error}): set GRACE_CACHE_DIR to one, or give cache=None"
        ) from error
    return Path(os.path.abspath(folder))


def cache_path(spec: str | os.PathLike[str]) -> Path:
    """The file that a specification means.

    Args:
        spec: `"default"`, a folder, or a file that exists or ends in `.sqlite`, `.sqlite3` or `.db`.

    Returns:
        The file, absolute; it need not exist.

    Raises:
        InputError: The specification is empty, of another type, or a word that is no path.

    Example:
        >>> cache_path("work/cache").name
        'rationales.sqlite'
    """
    try:
        text: object = os.fspath(spec)
    except TypeError:
        text = None
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"cache={spec!r}: give {_SPECS}.")
    if spec == "default":
        return default_cache_path()
    if isinstance(spec, str) and (text.lower() in _RESERVED or text == "memory"):
        raise InputError(f"cache={spec!r}: give {_SPECS} (write './{spec}' for a folder of that name).")
    path = Path(os.path.abspath(os.path.expanduser(text)))
    if path.is_file() or (path.suffix.lower() in _FILE_SUFFIXES and not path.is_dir()):
        return path
    return path / _FILE_NAME


def open_cache(
    spec: str | os.PathLike[str] | RationaleCache | None, *, max_bytes: int | None = None
) -> RationaleCache | None:
    """Open a cache. No file is made before the first row is stored.

    Args:
        spec: `"default"` for the file of `default_cache_path`, `"memory"` for a `MemoryCache`, a folder or a
            file for an `SQLiteCache` there, an object with `RationaleCache`'s methods for itself, None for
            none.
        max_bytes: Limit in bytes for a cache that is opened here; None keeps the store's own default.

    Returns:
        The cache, or None if `spec` is None, or (with a CacheWarning) if the user has no folder for the default.

    Raises:
        InputError: `spec` is none of these, or a limit was given together with an object or None.
        CacheCorruptedError: The file is damaged.
        CacheError: The file is not a cache of this version, or cannot be read.

    Example:
        >>> open_cache("memory", max_bytes=1_000_000)
        MemoryCache(max_bytes=1000000)
        >>> open_cache(None) is None
        True
    """
    if spec is None or (isinstance(spec, RationaleCache) and not isinstance(spec, type)):
        if max_bytes is not None:
            raise InputError("max_bytes only applies to a cache opened by this call; set it where the cache is made")
        return spec
    if spec == "memory":
        return MemoryCache() if max_bytes is None else MemoryCache(max_bytes=max_bytes)
    try:
        path = cache_path(spec)  # type: ignore[arg-type]  # refuses other types itself
    except CacheUnavailableError as error:
        message = f"The rationale cache stores nothing: {error}. Embedding goes on without it."
        warnings.warn(message, CacheWarning, stacklevel=2)
        return None
    cache = SQLiteCache(path) if max_bytes is None else SQLiteCache(path, max_bytes=max_bytes)
    cache.check()
    return cache


def clear_cache(spec: str | os.PathLike[str], fingerprint: bytes | None = None) -> int:
    """Clear a cache file, also a damaged one that `open_cache` refuses.

    Args:
        spec: As in `cache_path`.
        fingerprint: Remove only the rows of this fingerprint digest; None removes all.

    Returns:
        Number of rows removed; 0 for a damaged file, which is deleted.

    Raises:
        InputError: `spec` is no path.
        CacheError: The file is not a cache or cannot be written.
    """
    with SQLiteCache(cache_path(spec)) as cache:
        return cache.clear(fingerprint)
