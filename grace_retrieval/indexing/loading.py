"""How the embedder of an index is written down, and loaded again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace_retrieval.description import describe_options
from grace_retrieval.loading import BUNDLED_MODELS

if TYPE_CHECKING:
    from grace_retrieval.embedder import GraceEmbedder

__all__ = ["embedder_settings", "load_embedder"]


def embedder_settings(embedder: GraceEmbedder) -> dict[str, Any]:
    """Arguments of `GraceEmbedder` that load an embedder like this one; JSON values.

    Args:
        embedder: An embedder that was loaded from a folder or by name.
    """
    name = embedder.pipeline.name
    if name not in BUNDLED_MODELS and os.path.exists(name):
        name = str(Path(name).resolve())
    return {
        "model": name,
        **describe_options(embedder),
        # Of the weights as they are loaded here; another engine has its own among its options.
        "dtype": embedder.pipeline.policy.dtype,
    }


def load_embedder(settings: Mapping[str, Any], **options: Any) -> GraceEmbedder:
    """Load an embedder.

    Args:
        settings: What `embedder_settings` gave.
        **options: Arguments of `GraceEmbedder` that change no vector: cache, device, on_truncation, max_batch_tokens.

    Raises:
        ModelLoadError: If the model is not there, or damaged.
    """
    from grace_retrieval.embedder import GraceEmbedder

    arguments = {name: value for name, value in settings.items() if name != "dtype"}
    return GraceEmbedder(**arguments, model_kwargs={"dtype": settings["dtype"]}, **options)
