"""The page at /: a query, hits, what the model wrote, and the heat map of a hit. It fetches nothing from elsewhere."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

__all__ = ["index", "script", "style"]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; connect-src 'self'; "
    "img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""Nothing from elsewhere, and no script but the page's own: what models and documents say stays text."""

EXPLAIN = "grace_retrieval.explain"


async def index(request: Request) -> Response:
    """GET /."""
    return _answer(_read("grace_retrieval.serve", "page/index.html"), "text/html")


async def style(request: Request) -> Response:
    """GET /page.css: the page's style, and that of heat maps."""
    parts = (_read(EXPLAIN, "templates/explanation.css"), _read("grace_retrieval.serve", "page/page.css"))
    return _answer("\n".join(parts), "text/css")


async def script(request: Request) -> Response:
    """GET /page.js: the page's script, and that of heat maps."""
    parts = (_read(EXPLAIN, "templates/explanation.js"), _read("grace_retrieval.serve", "page/page.js"))
    return _answer("\n".join(parts), "text/javascript")


def _answer(content: str, media_type: str) -> Response:
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
    return Response(content, media_type=media_type, headers=headers)


@cache
def _read(package: str, path: str) -> str:
    return (files(package) / path).read_text(encoding="utf-8")
