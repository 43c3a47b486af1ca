"""Which role a request means. OpenAI's dialect has none: `input_type`, or a model's name with the role behind it."""

from __future__ import annotations

from grace_retrieval.rows import Role
from grace_retrieval.serve.errors import UNKNOWN_MODEL, RequestError

__all__ = ["DEFAULT_ROLE", "ROLES", "model_names", "read_role"]

ROLES: tuple[Role, ...] = ("query", "document")

DEFAULT_ROLE: Role = "document"
"""Of a request that names none: most texts that are embedded are documents, and stores hold documents."""


def model_names(name: str) -> list[str]:
    """Names that a model answers to."""
    return [name, *(f"{name}:{role}" for role in ROLES)]


def read_role(model: object, input_type: str | None, name: str) -> Role:
    """The role of a request's texts.

    Args:
        model: Model that the request names; None if it names none.
        input_type: Role that it names; None if it names none.
        name: Name of the model that is served.

    Raises:
        RequestError: If it names another model, or two roles.
    """
    given: Role | None = next((role for role in ROLES if role == input_type), None)
    if model is None:
        return given or DEFAULT_ROLE
    if not isinstance(model, str) or model not in model_names(name):
        raise RequestError(
            f"model={repr(model)[:80]} is not served here: give {', '.join(map(repr, model_names(name)))}.",
            UNKNOWN_MODEL,
            param="model",
        )
    named: Role | None = next((role for role in ROLES if model == f"{name}:{role}"), None)
    if named and given and named != given:
        raise RequestError(
            f"model={model!r} and input_type={given!r} name two roles: give one of them.", param="input_type"
        )
    return named or given or DEFAULT_ROLE
