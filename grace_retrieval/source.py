"""RationaleSource: from prompts to rationales and pooled vectors, through the cache.

prompt → cache → generate → pool → vector
         ^----- this module -----^
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from grace_retrieval.cache import CachedRationale, Fingerprint, RationaleCache, row_key
from grace_retrieval.engine import RationaleEngine, RationaleOutput, RationaleRequest, SamplingOptions
from grace_retrieval.errors import EngineError

__all__ = ["RationaleSource"]

COMMIT_ROWS = 64
COMMIT_SECONDS = 2.0
"""Finished rationales are stored this often, so an interrupted run loses no more than that."""


class RationaleSource:
    """Looks rationales up and has the missing ones generated.

    Args:
        engine: Runs the policy.
        cache: Where rationales are kept; None keeps none.
        decode: Token ids to text, for the cache's readers.
    """

    def __init__(
        self, engine: RationaleEngine, cache: RationaleCache | None, decode: Callable[[Sequence[int]], str]
    ) -> None:
        self.engine = engine
        self.cache = cache
        self.decode = decode

    def get(
        self,
        requests: Sequence[RationaleRequest],
        sampling: SamplingOptions,
        fingerprint: Callable[[], Fingerprint],
        on_row: Callable[[], object] = lambda: None,
    ) -> list[CachedRationale]:
        """Return one row a request, generating each missing prompt once.

        Args:
            requests: Prompts; those with given rationales go past the cache.
            sampling: How tokens are chosen.
            fingerprint: Identity of the rows; asked for only if there is a cache, because it hashes the weights.
            on_row: Called once for each request as soon as its row is there.

        Returns:
            Rows in the order of the requests.

        Raises:
            EngineError: If the engine gives fewer outputs than it got requests.
        """
        rows: list[CachedRationale | None] = [None] * len(requests)
        # An empty cache is false, so it is compared with None.
        others = [i for i, r in enumerate(requests) if self.cache is None or r.rationale_ids is not None]
        looked_up = sorted(set(range(len(requests))) - set(others))
        for place, output in self.engine.run([requests[i] for i in others], sampling) if others else ():
            rows[others[place]] = self._row(output)
            on_row()
        if self.cache is not None and looked_up:
            found = self._through_cache(self.cache, [requests[i] for i in looked_up], sampling, fingerprint(), on_row)
            for i, row in zip(looked_up, found, strict=True):
                rows[i] = row
        complete = [row for row in rows if row is not None]
        if len(complete) < len(rows):
            raise _lost_rows(len(rows) - len(complete), len(rows))
        return complete

    def find(
        self, requests: Sequence[RationaleRequest], fingerprint: Callable[[], Fingerprint]
    ) -> list[CachedRationale | None]:
        """Look rows up, generating nothing.

        Args:
            requests: Prompts.
            fingerprint: Identity of the rows.

        Returns:
            One row a request; None where the cache has none.
        """
        if self.cache is None or not requests:
            return [None] * len(requests)
        digest = fingerprint().digest()
        keys = [row_key(digest, request.input_ids) for request in requests]
        rows = self.cache.get_many(keys)
        return [rows.get(key) for key in keys]

    def _through_cache(
        self,
        cache: RationaleCache,
        requests: Sequence[RationaleRequest],
        sampling: SamplingOptions,
        fingerprint: Fingerprint,
        on_row: Callable[[], object],
    ) -> list[CachedRationale]:
        digest = fingerprint.digest()
        keys = [row_key(digest, request.input_ids) for request in requests]
        rows = cache.get_many(keys)
        for key in keys:
            if key in rows:
                on_row()
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in rows}
        if missing:
            cache.register(fingerprint)
            for key, row in self._generate(cache, missing, sampling, digest):
                rows[key] = row
                on_row()
            if lost := sum(key not in rows for key in missing):
                raise _lost_rows(lost, len(missing))
        return [rows[key] for key in keys]

    def _generate(
        self,
        cache: RationaleCache,
        missing: Mapping[bytes, RationaleRequest],
        sampling: SamplingOptions,
        digest: bytes,
    ) -> Iterator[tuple[bytes, CachedRationale]]:
        """Generate rows and store them in portions, what is ready also when interrupted."""
        keys = list(missing)
        fresh: dict[bytes, CachedRationale] = {}
        committed = time.monotonic()
        try:
            for index, output in self.engine.run(list(missing.values()), sampling):
                fresh[keys[index]] = row = self._row(output)
                yield keys[index], row
                if len(fresh) >= COMMIT_ROWS or time.monotonic() - committed > COMMIT_SECONDS:
                    cache.put_many(fresh, fingerprint=digest)
                    fresh, committed = {}, time.monotonic()
        finally:
            if fresh:
                cache.put_many(fresh, fingerprint=digest)

    def _row(self, output: RationaleOutput) -> CachedRationale:
        return CachedRationale(
            token_ids=output.token_ids,
            text=self.decode(output.token_ids),
            finish_reason="length" if output.finish_reason == "length" else "stop",
            vector=output.vector,
        )


def _lost_rows(lost: int, requests: int) -> EngineError:
    return EngineError(f"The engine gave no output for {lost} of {requests} texts; every request needs one.")
