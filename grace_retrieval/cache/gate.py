"""Whether a store may still be written, and the one warning when it may not."""

from __future__ import annotations

import math
import time
import warnings

from grace_retrieval.cache.base import CacheWarning
from grace_retrieval.cache.schema import CacheUnavailableError

__all__ = ["WriteGate"]

_BUSY_PAUSE_S = 60.0


class WriteGate:
    """Stops a store from trying in vain, batch after batch, while embeddings wait for it."""

    def __init__(self) -> None:
        self._open_again_at = -math.inf
        self._warned = False

    @property
    def is_open(self) -> bool:
        """Whether writing may be tried."""
        return time.monotonic() >= self._open_again_at

    def shut(self, error: CacheUnavailableError, *, stacklevel: int) -> None:
        """Stop writing, and warns the first time.

        Args:
            error: Why the last attempt failed.
            stacklevel: As in `warnings.warn`, seen from the caller.
        """
        # A lock may be let go again, so it is a pause. A full or read-only disk is left alone for good.
        self._open_again_at = time.monotonic() + (_BUSY_PAUSE_S if error.busy else math.inf)
        if self._warned:
            return
        self._warned = True
        pause = f"for {_BUSY_PAUSE_S:.0f} s" if error.busy else "any more in this process"
        message = f"The rationale cache stores nothing {pause}: {error}. Embedding goes on without it."
        warnings.warn(message, CacheWarning, stacklevel=stacklevel + 1)
