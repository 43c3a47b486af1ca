"""GraceTextEmbedder: embeds the query of a Haystack pipeline."""

from __future__ import annotations

from typing import Any

from haystack import component, default_from_dict, default_to_dict

from grace_retrieval.bundled import DEFAULT_MODEL
from grace_retrieval.settings import EmbedderSettings

__all__ = ["GraceTextEmbedder"]


@component
class GraceTextEmbedder:
    """Embeds a query through a written rationale.

    Args:
        model: A bundled model ("grace-small", "grace-nano"), a folder, a hub name, or a live GraceEmbedder.
        options: See `EmbedderOptions`: system_prompt, cache, device, truncate_dim, identity_file, ...

    Example:
        >>> len(GraceTextEmbedder("grace-nano", {"cache": None}).run("Why do tides follow the moon?")["embedding"])
        256
    """

    def __init__(self, model: Any = DEFAULT_MODEL, options: dict[str, Any] | None = None) -> None:
        self.settings = EmbedderSettings(model=model, **(options or {}))

    def warm_up(self) -> None:
        """Load the model."""
        self.settings.load()

    def to_dict(self) -> dict[str, Any]:
        """The configuration, without the model's weights."""
        return default_to_dict(self, **self.settings.split())

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> GraceTextEmbedder:
        """Read back what `to_dict` gave."""
        return default_from_dict(cls, data)

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """Embed a query. Shape of "embedding": (dim,)."""
        return {"embedding": self.settings.embed_query(text)}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, Any]:
        """As `run`, off the event loop and together with other queries that wait."""
        return {"embedding": await self.settings.aembed_query(text)}
