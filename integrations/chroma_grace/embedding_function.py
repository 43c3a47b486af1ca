"""GraceEmbeddingFunction: the embedding function of a Chroma collection."""

from __future__ import annotations

from typing import Any

import numpy as np
from chromadb import Collection
from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
from chromadb.utils.embedding_functions import register_embedding_function

from grace_retrieval.bundled import DEFAULT_MODEL
from grace_retrieval.settings import EmbedderSettings
from grace_retrieval.vector_identity import VectorIdentity

__all__ = ["GraceEmbeddingFunction"]


@register_embedding_function
class GraceEmbeddingFunction(EmbeddingFunction[Documents]):
    """Embeds documents and queries through written rationales, each role with its own prompt.

    A collection keeps this configuration, and what its vectors are made with. When Chroma opens a collection by itself
    (no `embedding_function=`), a model that has changed since is refused at the first text. Chroma does not compare a
    function that is given to `get_collection`, except by its kind: call `require` then.

    Args:
        model: A bundled model ("grace-small", "grace-nano"), a folder, a hub name, or a live GraceEmbedder.
        options: See `EmbedderOptions`: system_prompt, cache, device, truncate_dim, identity_file, ...
    """

    def __init__(self, model: Any = DEFAULT_MODEL, options: dict[str, Any] | None = None) -> None:
        self.settings = EmbedderSettings(model=model, **(options or {}))

    def __call__(self, input: Documents) -> Embeddings:
        """Embed documents. Shape: (texts, dim), float32."""
        return [*np.array(self.settings.embed_documents(input), dtype=np.float32)]

    def embed_query(self, input: Documents) -> Embeddings:
        """Embed queries. Shape: (texts, dim), float32."""
        return [*np.array(self.settings.embed_queries(input), dtype=np.float32)]

    def require(self, collection: Collection) -> None:
        """Refuse a collection whose vectors were made with something else.

        Raises:
            ModelMismatchError: The message names both models and what differs.
            InputError: If the collection does not say what its vectors were made with.
        """
        config = (collection.configuration_json.get("embedding_function") or {}).get("config") or {}
        self.settings.vector_identity().require(_identity(config), f"The collection {collection.name!r}")

    @staticmethod
    def name() -> str:
        """Name in a collection's configuration."""
        return "grace"

    def default_space(self) -> Space:
        """Vectors have length 1."""
        return "cosine"

    def get_config(self) -> dict[str, Any]:
        """The configuration and what its vectors are made with, which loads the model."""
        config = self.settings.split()
        config["options"]["identity"] = self.settings.vector_identity().describe()
        return config

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> GraceEmbeddingFunction:
        """Read back what `get_config` gave."""
        return GraceEmbeddingFunction(**config)

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Refuse to give a collection a function whose vectors do not go with those in it."""
        _identity(new_config).require(_identity(old_config), "The collection")


def _identity(config: dict[str, Any]) -> VectorIdentity:
    return VectorIdentity.from_description(config.get("options", {}).get("identity") or {})
