"""MicroBatcher: many small asynchronous requests become a few model calls, on a thread of their own."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from grace_retrieval.errors import EngineError
from grace_retrieval.forking import protect

__all__ = ["MicroBatcher"]

T = TypeVar("T")
_Call = Callable[[list[str]], Sequence[Any]]

MOST_TEXTS = 512
"""Texts of one call at most, unless a batcher is made for another number."""


@dataclass(eq=False)
class _Request:
    """Texts that wait for a call."""

    call: _Call
    texts: list[str]
    future: Future[list[Any]] = field(default_factory=Future)


class MicroBatcher:
    """Joins requests that wait at the same time into one call of the same function.

    There is no waiting time, unless one is asked for: the requests that one turn of an event loop makes go together, as
    do all that come while a call runs. Calls run on one thread that belongs to the batcher, so the event loop goes on,
    and other work in the loop's own executor is not held up. Nothing is bound to an event loop: several loops may share
    a batcher, and one that closes takes only its own requests along. A request that fails or is cancelled does not
    touch the others.

    Copies and pickles are new batchers, and a forked child starts without the requests of its parent.

    Args:
        most_texts: Texts of one call at most, so that a query need not wait for a whole corpus.
        linger: How long a call is waited with for as many requests as the last one answered, as a share of the seconds
            that it took. Clients that wait for answers send their next requests a moment after they got them: without
            it the first of them would be a call of its own, and all others wait for it.
    """

    def __init__(self, most_texts: int = MOST_TEXTS, *, linger: float = 0.0) -> None:
        self._most_texts = most_texts
        self._linger = linger
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._arrived = threading.Condition(self._lock)
        self._waiting: list[_Request] = []
        self._working = False
        self._executor: ThreadPoolExecutor | None = None
        self._last: _Call | None = None
        protect(self)

    def __reduce__(self) -> tuple[Callable[..., MicroBatcher], tuple[()]]:
        return (partial(MicroBatcher, self._most_texts, linger=self._linger), ())

    async def run(self, call: Callable[[list[str]], Sequence[T]], texts: Sequence[str]) -> list[T]:
        """Have texts processed together with those of other requests.

        Args:
            call: Takes a list of texts and gives one result a text. Requests with equal functions are joined.
            texts: Texts of this request.

        Returns:
            One result a text.

        Raises:
            EngineError: If `call` gives another number of results than it got texts.
            Exception: What `call` raises for these texts.
        """
        most = self._most_texts
        requests = [_Request(call, list(texts[at : at + most])) for at in range(0, len(texts), most)]
        with self._lock:
            self._waiting += requests
            self._arrived.notify()
        # Behind everything else that is ready in this turn of the loop.
        asyncio.get_running_loop().call_soon(self._start)
        parts = await asyncio.gather(*(asyncio.wrap_future(request.future) for request in requests))
        return [result for part in parts for result in part]

    def _start(self) -> None:
        """Wake the thread, unless it is at work and will see the new requests by itself."""
        with self._lock:
            if self._working or not self._waiting:
                return
            self._working = True
            if self._executor is None:
                self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grace-batch")
            executor = self._executor
        # Not under the lock: the executor has locks of its own, which a fork waits for in another order.
        executor.submit(self._work)

    def _work(self) -> None:
        while True:
            with self._lock:
                batch = self._next_batch()
                if not batch:
                    self._working = False
                    return
            started = time.monotonic()
            _run_batch(batch)
            if self._linger and len(batch) > 1:
                patience, before = self._linger * (time.monotonic() - started), len(batch)
                with self._lock:
                    self._arrived.wait_for(lambda: len(self._waiting) >= before, patience)  # noqa: B023 - called here
            del batch

    def _next_batch(self) -> list[_Request]:
        """Take requests of one function, up to `most_texts`; functions take turns, cancelled ones are dropped."""
        self._waiting = [request for request in self._waiting if not request.future.cancelled()]
        if not self._waiting:
            return []
        others = [request.call for request in self._waiting if request.call != self._last]
        self._last = others[0] if others else self._waiting[0].call
        batch: list[_Request] = []
        left: list[_Request] = []
        texts = 0
        for request in self._waiting:
            fits = request.call == self._last and (not batch or texts + len(request.texts) <= self._most_texts)
            if not fits:
                left.append(request)
            elif request.future.set_running_or_notify_cancel():
                batch.append(request)
                texts += len(request.texts)
        self._waiting = left
        return batch or self._next_batch()

    def before_fork(self) -> None:
        """Keep the other threads out while the process forks."""
        self._lock.acquire()

    def after_fork(self) -> None:
        """Let them in again; a child has neither the thread nor the loops whose requests wait."""
        if self._pid != os.getpid():
            self._pid, self._waiting, self._working, self._executor = os.getpid(), [], False, None
        self._lock.release()


def _run_batch(batch: Sequence[_Request]) -> None:
    """Make one call for all requests; if it fails, one for each, so that only the guilty ones fail."""
    texts = [text for request in batch for text in request.texts]
    try:
        results = batch[0].call(texts)
        if len(results) != len(texts):
            raise EngineError(f"{len(results)} results for {len(texts)} texts: every text needs one.")
    except BaseException as error:  # whatever it is, somebody waits for it
        if len(batch) == 1:
            batch[0].future.set_exception(error)
            return
        for request in batch:
            _run_batch([request])
        return
    start = 0
    for request in batch:
        request.future.set_result(list(results[start : start + len(request.texts)]))
        start += len(request.texts)
