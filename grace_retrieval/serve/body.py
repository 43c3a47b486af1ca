"""Bodies: read within limits of size and time, and as strict JSON; and work that ends when its client is gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from grace_retrieval.serve.admission import Place
from grace_retrieval.serve.errors import GONE, MEDIA_TYPE, TIMEOUT, TOO_LARGE, RequestError
from grace_retrieval.serve.options import ServeOptions

__all__ = ["discard", "read_json", "while_connected"]

T = TypeVar("T")

MOST_DISCARDED = 64 << 20
"""Bytes of a refused body that are read and thrown away. Where there are more, the connection ends."""


async def read_json(request: Request, place: Place, options: ServeOptions) -> Any:
    """Read the body of a request.

    Args:
        request: The request.
        place: Where its bytes are counted.
        options: Limits.

    Returns:
        JSON values.

    Raises:
        RequestError: If it is too large, too slow, of another type, or no JSON; or the client is gone.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        # A page of another origin may send forms and plain text without being asked for leave, but no JSON.
        given = f"{media[:60]!r}" if media else "missing"
        raise RequestError(f"Content-Type is {given}: send 'Content-Type: application/json'.", MEDIA_TYPE)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise RequestError("Compressed bodies are not read: send it without Content-Encoding.", MEDIA_TYPE)
    length = request.headers.get("content-length", "")
    if length.isdecimal():
        _hold(int(length), place, options)
    pieces, size = [], 0
    try:
        with anyio.fail_after(options.body_seconds):
            async for piece in request.stream():
                size += len(piece)
                _hold(size, place, options)
                pieces.append(piece)
    except TimeoutError as error:
        raise RequestError(
            f"The body did not come within {options.body_seconds:g} s: send it faster, or in several requests.",
            TIMEOUT,
        ) from error
    except ClientDisconnect as error:
        raise RequestError("The client is gone.", GONE) from error
    return parse_json(b"".join(pieces))


def parse_json(body: bytes) -> Any:
    """Parse strict JSON: no NaN, no infinity.

    Raises:
        RequestError: If it is none.
    """
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except RequestError:
        raise
    except UnicodeDecodeError as error:
        raise RequestError("The body is not UTF-8: send JSON in UTF-8.") from error
    except RecursionError as error:
        raise RequestError("The body is nested too deeply: send a flat JSON object.") from error
    except ValueError as error:
        raise RequestError(f"The body is no JSON ({str(error)[:100]}): send a JSON object.") from error


def _refuse_constant(name: str) -> Any:
    raise RequestError(f"The body holds {name}, which is no JSON: send finite numbers, or null.")


def _hold(size: int, place: Place, options: ServeOptions) -> None:
    """Hold so many bytes.

    Raises:
        RequestError: If a body may not have so many, or there is no room for them.
    """
    if size > options.max_body:
        raise RequestError(
            f"The body has more than {options.max_body} bytes, the limit of this server (--max-body): send fewer texts "
            "in a request.",
            TOO_LARGE,
        )
    place.reserve(size)


async def discard(receive: Receive, seconds: float) -> None:
    """Read what is left of a body and throw it away: a client hears an answer only once it has sent what it wanted to.

    Args:
        receive: Of the request.
        seconds: Most seconds for it.
    """
    left = MOST_DISCARDED
    with anyio.move_on_after(seconds):
        while left > 0:
            message = await receive()
            left -= len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                return


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do work for a client; cancel it as soon as the client is gone.

    Args:
        request: The request, its body read.
        work: What is done.

    Returns:
        What came of it.

    Raises:
        RequestError: If the client went away.
        Exception: What the work raises.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise RequestError("The client is gone.", GONE)
    finally:
        task.cancel()
        gone.cancel()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
