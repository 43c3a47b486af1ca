"""One process, one copy of a model: embedders that are loaded once for each configuration and shared by all who ask."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from grace_retrieval.bundled import DEFAULT_MODEL
from grace_retrieval.cache import cache_path
from grace_retrieval.errors import CacheError
from grace_retrieval.forking import protect

if TYPE_CHECKING:
    from grace_retrieval.embedder import GraceEmbedder

__all__ = ["shared_embedder", "unload_embedders"]


class _Registry:
    """Embedders by configuration; a forked child keeps those that were loaded."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._loading = threading.Lock()
        self._embedders: dict[str, Future[GraceEmbedder]] = {}
        protect(self)

    def get(self, key: str, model: str, options: dict[str, Any]) -> GraceEmbedder:
        with self._lock:
            future = self._embedders.get(key)
            mine = future is None
            if future is None:
                future = self._embedders[key] = Future()
        if mine:
            try:
                # One model at a time: transformers changes global defaults while it loads.
                with self._loading:
                    future.set_result(_load(model, options))
            except BaseException as error:
                with self._lock:
                    self._embedders.pop(key, None)  # so that the next one tries again
                future.set_exception(error)
        return future.result()

    def clear(self) -> None:
        with self._lock:
            self._embedders.clear()

    def before_fork(self) -> None:
        self._lock.acquire()

    def after_fork(self) -> None:
        if self._pid != os.getpid():
            # The thread that was loading did not come along.
            self._pid, self._loading = os.getpid(), threading.Lock()
            self._embedders = {key: future for key, future in self._embedders.items() if future.done()}
        self._lock.release()


_registry = _Registry()


def shared_embedder(model: str = DEFAULT_MODEL, **options: Any) -> GraceEmbedder:
    """Load an embedder, or return the one that was loaded with the same configuration before.

    Threads that ask at the same time wait for one load. Embedders stay until `unload_embedders`, and are shared: do not
    change their settings. A model folder that was written anew is loaded anew.

    Args:
        model: Bundled model, folder or hub name.
        **options: Arguments of GraceEmbedder as JSON values.

    Returns:
        The embedder.

    Raises:
        ModelLoadError: If the model cannot be loaded.
        InputError: If an option is out of range.

    Example:
        >>> shared_embedder("grace-nano", cache=None) is shared_embedder("grace-nano", cache=None)
        True
    """
    options = {name: value for name, value in options.items() if value is not None or name == "cache"}
    cache = options.setdefault("cache", "default")
    try:
        place = cache if cache in (None, "memory") else str(cache_path(cache))
    except CacheError:  # there is no place for it, which the embedder will say
        place = None
    key = json.dumps([model, _state(model), {**options, "cache": place}], sort_keys=True)
    return _registry.get(key, model, options)


def unload_embedders() -> None:
    """Forget all shared embedders; memory is free again once nobody uses them any more."""
    _registry.clear()


def _load(model: str, options: dict[str, Any]) -> GraceEmbedder:
    from grace_retrieval.embedder import GraceEmbedder

    return GraceEmbedder(model, **options)


def _state(model: str) -> list[tuple[str, int, int]]:
    """Names, sizes and times (ns) of the files in a model folder; nothing for other names."""
    found = []
    for folder, _, names in os.walk(os.path.abspath(os.path.expanduser(model))):
        for name in sorted(names):
            status = os.stat(os.path.join(folder, name))
            found.append((os.path.join(folder, name), status.st_size, status.st_mtime_ns))
    return sorted(found)
