"""The application: all routes behind one door."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import anyio
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from grace_retrieval.serve import openai_dialect, own_routes, page, tei_dialect
from grace_retrieval.serve.body import read_json, while_connected
from grace_retrieval.serve.door import Door, json_response
from grace_retrieval.serve.service import EmbeddingService

__all__ = ["create_app"]

Answer = Callable[[EmbeddingService, Any, Request], Coroutine[Any, Any, Any]]
"""From a body to JSON values, or to HTML as a string."""


def create_app(service: EmbeddingService) -> Door:
    """The ASGI application of a server.

    Args:
        service: What it serves.

    Example:
        >>> from grace_retrieval import GraceEmbedder
        >>> from grace_retrieval.serve import ServeOptions
        >>> from grace_retrieval.serve.service import EmbeddingService
        >>> embedder = GraceEmbedder("grace-nano", cache=None, on_truncation="ignore")
        >>> app = create_app(EmbeddingService(embedder, ServeOptions()))
    """
    routes = [
        *_work(service),
        *_facts(service),
        Route("/", page.index, methods=["GET"]),
        Route("/page.css", page.style, methods=["GET"]),
        Route("/page.js", page.script, methods=["GET"]),
    ]
    return Door(Router(routes, redirect_slashes=False), service.options, service.metrics)


class _Work:
    """A route whose requests take a place in the queue, from before their bodies are read until the answer is sent.

    Args:
        service: What works.
        answer: What is asked of it.
    """

    def __init__(self, service: EmbeddingService, answer: Answer) -> None:
        self._service = service
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        request, service = Request(scope, receive), self._service
        with service.admission.place() as place:
            body = await read_json(request, place, service.options)
            _note(service, request, body)
            found = await while_connected(request, self._answer(service, body, request))
            del body
            response = HTMLResponse(found) if isinstance(found, str) else json_response(found)
            place.add_answer(len(response.body))
            del found
            with anyio.fail_after(service.options.answer_seconds):
                await send({"type": "http.response.start", "status": 200, "headers": response.raw_headers})
                await send({"type": "http.response.body", "body": response.body, "more_body": True})
                # uvicorn waits here until the client took what was written before.
                await send({"type": "http.response.body", "body": b"", "more_body": False})


def _work(service: EmbeddingService) -> list[Route]:
    def post(path: str, answer: Callable[[EmbeddingService, Any], Coroutine[Any, Any, Any]]) -> Route:
        return Route(path, _Work(service, lambda service, body, _: answer(service, body)), methods=["POST"])

    def refused(path: str) -> Route:
        async def endpoint(request: Request) -> Response:
            raise tei_dialect.refuse(path)

        return Route(path, endpoint, methods=["POST"])

    def explain(service: EmbeddingService, body: Any, request: Request) -> Coroutine[Any, Any, Any]:
        return own_routes.explain(service, body, html=request.headers.get("accept", "").startswith("text/html"))

    return [
        post("/v1/embeddings", openai_dialect.embeddings),
        post("/embed", tei_dialect.embed),
        post("/", tei_dialect.embed),
        post("/rationale", own_routes.rationale),
        post("/search", own_routes.search),
        Route("/explain", _Work(service, explain), methods=["POST"]),
        *map(refused, tei_dialect.REFUSED),
    ]


def _facts(service: EmbeddingService) -> list[Route]:
    """Routes that are answered at once, whatever waits."""

    async def models(request: Request) -> Response:
        return json_response(openai_dialect.list_models(service))

    async def model(request: Request) -> Response:
        return json_response(openai_dialect.model_card(service, request.path_params["name"]))

    async def info(request: Request) -> Response:
        return json_response(tei_dialect.info(service))

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def live(request: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def ready(request: Request) -> Response:
        """Whether it makes sense to send texts here: not while the server ends, nor while no place is free."""
        full = service.admission.requests >= service.admission.max_requests
        reason = "stopping" if service.admission.stopping else "full" if full else "ready"
        return PlainTextResponse(f"{reason}\n", status_code=200 if reason == "ready" else 503)

    return [
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{name:path}", model, methods=["GET"]),
        Route("/info", info, methods=["GET"]),
        Route("/metrics", metrics, methods=["GET"]),
        Route("/live", live, methods=["GET"]),
        Route("/ready", ready, methods=["GET"]),
        Route("/health", ready, methods=["GET"]),
    ]


def _note(service: EmbeddingService, request: Request, body: Any) -> None:
    """What the log line of a request tells: how many texts, and the first of them only if that was asked for."""
    if not isinstance(body, dict):
        return
    given = next((body[name] for name in ("input", "inputs", "texts", "query") if name in body), None)
    facts = request.scope["state"]["facts"]
    facts["texts"] = len(given) if isinstance(given, list) else 1
    if service.options.log_texts:
        first = given[0] if isinstance(given, list) and given else given
        facts["text"] = ascii(first)[:200]
