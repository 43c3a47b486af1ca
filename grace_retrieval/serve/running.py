"""Running a server: until SIGTERM or Ctrl-C, which let it finish what it has."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from grace_retrieval.errors import InputError
from grace_retrieval.serve.app import create_app
from grace_retrieval.serve.protocol import patient_protocol
from grace_retrieval.serve.service import EmbeddingService

__all__ = ["make_server", "open_socket", "run_server"]

KEEP_ALIVE_SECONDS = 30

BACKLOG = 2048
"""Connections that the system holds until they are looked at."""

FILES = 65_536
"""Open files that are asked for."""


class _Server(uvicorn.Server):
    """Lets nobody in any more once it is told to end, and then returns."""

    def __init__(self, config: uvicorn.Config, service: EmbeddingService) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Finish what is there, refuse what comes; a second Ctrl-C ends at once."""
        self._service.admission.stopping = True
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn does, but without raising the signal again: to be told to end is no failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in handlers.items():
                signal.signal(sig, handler)


def open_socket(host: str, port: int) -> socket.socket:
    """Take an address, so that whoever starts a second server is told before a model is loaded.

    Args:
        host: Address or name.
        port: Port; 0 takes a free one.

    Returns:
        A socket that is bound, and does not listen yet.

    Raises:
        InputError: If the address cannot be had.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, proto)
    except OSError as error:
        raise InputError(
            f"--host {host!r} --port {port}: {error.strerror or error}. Give an address of here."
        ) from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise InputError(
            f"--host {host!r} --port {port} cannot be listened at ({error.strerror or error}): another server may have "
            "it. Give another --port, or 0 for a free one."
        ) from error
    bound.setblocking(False)
    return bound


def make_server(service: EmbeddingService, *, stop_seconds: int) -> uvicorn.Server:
    """A server of uvicorn's that is not running yet.

    Args:
        service: What is served.
        stop_seconds: Most seconds that requests are given to finish, once the server is told to end.
    """
    config = uvicorn.Config(
        create_app(service),
        http=patient_protocol(service.options.body_seconds, KEEP_ALIVE_SECONDS),
        ws="none",
        lifespan="off",
        access_log=False,
        server_header=False,
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=stop_seconds,
        backlog=BACKLOG,
    )
    return _Server(config, service)


def run_server(
    service: EmbeddingService, bound: socket.socket, *, stop_seconds: int, ready: Callable[[], None]
) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        service: What is served.
        bound: From `open_socket`.
        stop_seconds: Most seconds that requests are given to finish, once the server is told to end.
        ready: Called when it listens.
    """
    _allow_connections()
    bound.listen(BACKLOG)
    ready()
    asyncio.run(make_server(service, stop_seconds=stop_seconds).serve(sockets=[bound]))


def _allow_connections() -> None:
    """Many systems allow a process 1024 open files unless it asks, and each connection is one."""
    try:
        import resource
    except ImportError:  # not on Windows, which has no such limit
        return
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if most == resource.RLIM_INFINITY else min(FILES, most)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
