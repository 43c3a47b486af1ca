"""RationaleSource: from prompts to rationales and pooled vectors, through the cache.

prompt → cache → generate → pool → vector
         ^----- this module -----^
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from grace_retrieval.cache import CachedRationale, Fingerprint, RationaleCache, row_key
from grace_retrieval.engine import RationaleEngine, RationaleOutput, RationaleRequest, SamplingOptions

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
        """
        if self.cache is None or not requests or requests[0].rationale_ids is not None:
            outputs: dict[int, CachedRationale] = {}
            for index, output in self.engine.run(requests, sampling):
                outputs[index] = self._row(output)
                on_row()
            return [outputs[index] for index in range(len(requests))]
        identity = fingerprint()
        digest = identity.digest()
        keys = [row_key(digest, request.input_ids) for request in requests]
        rows = dict(self.cache.get_many(list(dict.fromkeys(keys))))
        for key in keys:
            if key in rows:
                on_row()
        missing = list({key: request for key, request in zip(keys, requests, strict=True) if key not in rows}.items())
        if missing:
            self.cache.register(identity)
            self._generate(missing, sampling, digest, rows, on_row)
        return [rows[key] for key in keys]

    def _generate(
        self,
        missing: Sequence[tuple[bytes, RationaleRequest]],
        sampling: SamplingOptions,
        digest: bytes,
        rows: dict[bytes, CachedRationale],
        on_row: Callable[[], object],
    ) -> None:
        fresh: dict[bytes, CachedRationale] = {}
        committed = time.monotonic()

        def commit() -> None:
            if fresh and self.cache is not None:
                self.cache.put_many(fresh, fingerprint=digest)
                fresh.clear()

        try:
            for index, output in self.engine.run([request for _, request in missing], sampling):
                key = missing[index][0]
                rows[key] = fresh[key] = self._row(output)
                on_row()
                if len(fresh) >= COMMIT_ROWS or time.monotonic() - committed > COMMIT_SECONDS:
                    commit()
                    committed = time.monotonic()
        finally:
            commit()

    def _row(self, output: RationaleOutput) -> CachedRationale:
        return CachedRationale(
            token_ids=output.token_ids,
            text=self.decode(output.token_ids),
            finish_reason="length" if output.finish_reason == "length" else "stop",
            vector=output.vector,
        )
