"""Errors of requests, and how each dialect words them.

    OpenAI's and ours    {"error": {"message": …, "type": …, "param": …, "code": …}}
    TEI's                {"error": …, "error_type": …}

A message names fields and limits, and never a path or a traceback.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Kind", "RequestError", "error_body", "error_status", "speaks_tei"]

TEI_PATHS = ("/embed", "/embed_all", "/embed_sparse", "/predict", "/rerank", "/info", "/health")
"""Routes of Text Embeddings Inference. A POST to / is one too: that is where huggingface_hub sends texts."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of error.

    Attributes:
        status: HTTP status.
        type: Name of OpenAI.
        code: Code of OpenAI; None for none.
        tei_status: HTTP status of TEI.
        tei_type: Name of TEI.
    """

    status: int
    type: str = "invalid_request_error"
    code: str | None = None
    tei_status: int | None = None
    tei_type: str = "Validation"


INVALID = Kind(status=400, tei_status=422)
EMPTY = Kind(status=400, code="empty_input", tei_type="Empty")
TOO_LARGE = Kind(status=413, code="too_large")
TOO_LONG = Kind(status=400, code="context_length_exceeded", tei_status=413)
UNAUTHORIZED = Kind(status=401, type="authentication_error", code="invalid_api_key", tei_type="Unauthorized")
WRONG_HOST = Kind(status=421, code="wrong_host")
UNKNOWN_MODEL = Kind(status=404, code="model_not_found")
NOT_FOUND = Kind(status=404, code="not_found")
METHOD = Kind(status=405, code="method_not_allowed")
TIMEOUT = Kind(status=408, code="body_too_slow")
MEDIA_TYPE = Kind(status=415, code="unsupported_media_type")
UNSUPPORTED = Kind(status=501, code="unsupported", tei_status=424, tei_type="Backend")
OVERLOADED = Kind(status=429, type="rate_limit_error", code="overloaded", tei_type="Overloaded")
STOPPING = Kind(status=503, type="server_error", code="stopping", tei_type="Unhealthy")
FAILED = Kind(status=500, type="server_error", code="failed", tei_type="Backend")
GONE = Kind(status=499, code="client_gone")


@dataclass(eq=False)
class RequestError(Exception):
    """A request cannot be answered.

    Attributes:
        message: What was given, what is allowed, how to mend it.
        kind: What kind of error it is.
        param: Field of the request that is to blame; None if none is.
        headers: Headers of the answer.
    """

    message: str
    kind: Kind = INVALID
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """The message."""
        return self.message


def speaks_tei(method: str, path: str) -> bool:
    """Whether a request is one of TEI's dialect."""
    return path in TEI_PATHS or (path == "/" and method == "POST")


def error_status(error: RequestError, *, tei: bool) -> int:
    """HTTP status of an error, in a dialect."""
    return (error.kind.tei_status if tei else None) or error.kind.status


def error_body(error: RequestError, *, tei: bool) -> dict[str, Any]:
    """An error in the words of a dialect; JSON values."""
    if tei:
        return {"error": error.message, "error_type": error.kind.tei_type}
    return {
        "error": {
            "message": error.message,
            "type": error.kind.type,
            "param": error.param,
            "code": error.kind.code,
        }
    }
