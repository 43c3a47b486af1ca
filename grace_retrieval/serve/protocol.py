"""The protocol of a connection: uvicorn's, with an end to its patience, as it waits for ever for a request's head."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

__all__ = ["patient_protocol"]


def patient_protocol(head_seconds: float, keep_alive_seconds: float) -> type[H11Protocol]:
    """A protocol that ends connections whose next request never comes whole, or that do not take what they are sent.

    Args:
        head_seconds: Most seconds for a head to come.
        keep_alive_seconds: How long a connection may be idle between two requests.
    """

    class PatientProtocol(H11Protocol):
        """HTTP in Python (h11), with a limit on the size of a head, and on its time."""

        _patience: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            """Wait for the first request."""
            super().connection_made(transport)
            self._wait(head_seconds)

        def on_response_complete(self) -> None:
            """Wait for the next one."""
            super().on_response_complete()
            self._wait(keep_alive_seconds + head_seconds)

        def connection_lost(self, exc: Exception | None) -> None:
            """Wait no more."""
            if self._patience is not None:
                self._patience.cancel()
            super().connection_lost(exc)

        def _wait(self, seconds: float) -> None:
            if self._patience is not None:
                self._patience.cancel()
            self._patience = self.loop.call_later(seconds, self._look)

        def _look(self) -> None:
            if self.transport.is_closing():
                self.transport.abort()  # what was to be sent is not taken, and would stay in memory
                return
            cycle: RequestResponseCycle | None = self.cycle  # none before the first request
            if cycle is None or cycle.response_complete:
                self.transport.close()
            self._wait(head_seconds)

    return PatientProtocol
