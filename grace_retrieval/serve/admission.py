"""Admission: places for requests. Whoever finds none is refused at once, so that memory stays bounded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from grace_retrieval.serve.errors import OVERLOADED, STOPPING, RequestError

__all__ = ["Admission", "Place"]

MOST_RETRY_SECONDS = 60
"""What a refused client is told to wait at most: openai's own client ignores more."""


class Place:
    """A request that was let in, and the bytes that it holds.

    Args:
        admission: Where.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.bytes = 0

    def reserve(self, total: int) -> None:
        """Hold so many bytes in all from now on.

        Raises:
            RequestError: If there is no room for them: 429.
        """
        if total > self.bytes:
            self._admission.take_bytes(total - self.bytes)
            self.bytes = total

    def add_answer(self, count: int) -> None:
        """Hold the bytes of an answer too, until it is sent: what waits to come in is refused, this is not."""
        self._admission.bytes += count
        self.bytes += count


class Admission:
    """Counts requests from before their bodies are read until they are answered, or their clients are gone.

    Everything happens on the event loop, so there are no locks.

    Args:
        max_requests: Most requests at a time.
        max_bytes: Most bytes of their bodies.

    Attributes:
        requests: Requests that are in.
        bytes: Bytes of their bodies, and of the answers that are being sent.
        stopping: Whether the server ends, so that nobody is let in.
    """

    def __init__(self, *, max_requests: int, max_bytes: int) -> None:
        self.max_requests = max_requests
        self.max_bytes = max_bytes
        self.requests = 0
        self.bytes = 0
        self.stopping = False
        self._seconds_each = 0.1

    @contextmanager
    def place(self) -> Iterator[Place]:
        """Hold a place inside the block.

        Raises:
            RequestError: If all are taken (429), or the server ends (503).
        """
        if self.stopping:
            raise RequestError("The server is stopping: ask again in a moment.", STOPPING, headers={"Retry-After": "1"})
        if self.requests >= self.max_requests:
            raise self._full(f"{self.requests} requests wait, which is as many as this server holds (--max-queue)")
        place = Place(self)
        self.requests += 1
        try:
            yield place
        finally:
            self.requests -= 1
            self.bytes -= place.bytes

    def take_bytes(self, count: int) -> None:
        """Hold more bytes; `Place` gives them back.

        Raises:
            RequestError: If there is no room for them: 429.
        """
        if self.bytes + count > self.max_bytes:
            raise self._full(
                f"The bodies that wait hold {self.bytes} bytes, and {self.max_bytes} is all that this server holds "
                "(--max-queue-bytes)"
            )
        self.bytes += count

    def answered(self, seconds: float) -> None:
        """Learn how often an answer leaves, for Retry-After.

        Args:
            seconds: Time that a request of the last batch took of it.
        """
        self._seconds_each += 0.1 * (seconds - self._seconds_each)

    def retry_seconds(self) -> int:
        """When it makes sense to ask again: about when half of those that wait are answered."""
        return max(1, min(MOST_RETRY_SECONDS, math.ceil(self.requests * self._seconds_each / 2)))

    def _full(self, why: str) -> RequestError:
        seconds = self.retry_seconds()
        return RequestError(f"{why}: ask again in {seconds} s.", OVERLOADED, headers={"Retry-After": str(seconds)})
