"""The door: what every request passes. An id, the host's name, the key, errors in its dialect, one log line."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
import re
import time
import uuid
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from grace_retrieval.errors import InputError
from grace_retrieval.serve.body import discard
from grace_retrieval.serve.errors import (
    FAILED,
    METHOD,
    NOT_FOUND,
    TIMEOUT,
    UNAUTHORIZED,
    WRONG_HOST,
    RequestError,
    error_body,
    error_status,
    speaks_tei,
)
from grace_retrieval.serve.metrics import Metrics
from grace_retrieval.serve.options import ServeOptions

__all__ = ["Door", "json_response"]

logger = logging.getLogger("grace_retrieval.serve")

OPEN_PATHS = ("/", "/page.css", "/page.js", "/live", "/ready", "/health")
"""Paths whose GET needs no key: the page asks for one, and who watches the server has none."""

_PATH = re.compile(r"(^|[\s'\"(])(/|~|\\\\|[A-Za-z]:\\)\S")

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)


class Door:
    """ASGI application around the routes.

    Args:
        app: The routes.
        options: Keys, names of the host, what is logged.
        metrics: Where requests are counted.
    """

    def __init__(self, app: ASGIApp, options: ServeOptions, metrics: Metrics) -> None:
        self._app = app
        self._options = options
        self._metrics = metrics
        self._keys = [_digest(key) for key in options.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        request = Request(scope, receive)
        given = request.headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        facts: dict[str, Any] = scope.setdefault("state", {}).setdefault("facts", {})
        scope["app"] = self  # so that the routes raise what they do not find
        status = 0
        unread = True

        async def receive_once() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and bool(message.get("more_body"))
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), *HEADERS]
            await send(message)

        try:
            self._check(request)
            await self._app(scope, receive_once, send_with_id)
        except Exception as error:
            if status:  # the answer has begun: nothing can be said any more
                slow = isinstance(error, TimeoutError)
                logger.warning("id=%s: the answer was cut off", request_id, exc_info=None if slow else error)
            else:
                response = self._answer(error, request, request_id)
                if unread and response.status_code != TIMEOUT.status:
                    await discard(receive_once, self._options.body_seconds)
                if unread:
                    response.headers["Connection"] = "close"
                await response(scope, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "-")
            seconds = time.monotonic() - started
            self._metrics.requests.labels(route=route, status=str(status)).inc()
            self._metrics.request_seconds.labels(route=route).observe(seconds)
            told = "".join(f" {name}={value}" for name, value in facts.items())
            path = scope.get("raw_path", b"-").decode("ascii", "replace")[:200]
            logger.info("%s %s %s %.4fs id=%s%s", scope["method"], path, status, seconds, request_id, told)

    def _check(self, request: Request) -> None:
        """Refuse a request by another name of the host, or without a key."""
        host = request.headers.get("host", "")
        name = host.rpartition(":")[0] if re.search(r":\d*$", host) else host
        if self._options.hosts is not None and name.lower() not in self._options.hosts:
            raise RequestError(
                f"Host {host[:80]!r} is not a name of this server: it answers to {', '.join(self._options.hosts)}, or "
                "to others that it is started with (--allow-host).",
                WRONG_HOST,
            )
        if not self._keys or (request.method in ("GET", "HEAD") and request.url.path in OPEN_PATHS):
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        mine = _digest(key.strip())
        # All are compared, each in constant time, so that the time tells nothing of them.
        matches = [hmac.compare_digest(mine, known) for known in self._keys]
        if scheme.lower() != "bearer" or not any(matches):
            raise RequestError(
                "The key is missing or wrong: send 'Authorization: Bearer KEY' (api_key= of OpenAI's client, token= of "
                "huggingface_hub's).",
                UNAUTHORIZED,
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _answer(self, error: Exception, request: Request, request_id: str) -> Response:
        """An error in the client's dialect."""
        found = _as_request_error(error, request)
        if found is None:
            logger.error("id=%s: the request failed", request_id, exc_info=error)
            found = RequestError(f"The server failed at this request. Its log has more, under id={request_id}.", FAILED)
        tei = speaks_tei(request.method, request.url.path)
        return json_response(
            error_body(found, tei=tei), status=error_status(found, tei=tei), headers=dict(found.headers)
        )


def _as_request_error(error: Exception, request: Request) -> RequestError | None:
    """What may be told of an error; None if nothing may."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, HTTPException):
        path = request.url.path[:80]
        if error.status_code == 405:
            allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
            return RequestError(
                f"{path} does not take {request.method}: it takes {allowed}.", METHOD, headers={"Allow": allowed}
            )
        return RequestError(f"There is no {path} here: docs/serving.md lists the routes.", NOT_FOUND)
    # Messages of the library may name files, which are nobody's business out there.
    if isinstance(error, InputError) and not _PATH.search(str(error)):
        return RequestError(str(error))
    return None


def json_response(value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON, in which NaN and infinity, which metadata of documents may hold, are null."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"))
    return Response(text.encode("utf-8", "replace"), status_code=status, headers=headers, media_type="application/json")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
