"""Configuration: what LlamaIndex takes for the settings of a GraceEmbedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Configuration"]


class Configuration(dict[str, Any]):
    """A configuration whose text form is the identity of the document vectors.

    IngestionPipeline takes the text for what vectors depend on: a larger batch must not embed everything again, and
    new weights in the same folder must.
    """

    def __init__(self, values: dict[str, Any], identity: Callable[[], str]) -> None:
        super().__init__(values)
        self._identity = identity

    def __str__(self) -> str:
        return f"GraceEmbedding {self._identity()}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (dict, (dict(self),))
