"""What an embedder is, written down so that it can be loaded again: one list, for indexes, settings, copies and Ray.

Whatever is part of a vector's identity and does not follow from the model's name has to be in here.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from grace_retrieval.engines.by_name import DEFAULT_ENGINE

if TYPE_CHECKING:
    from grace_retrieval.embedder import GraceEmbedder

__all__ = ["describe_options"]


def describe_options(embedder: GraceEmbedder) -> dict[str, Any]:
    """Arguments of `GraceEmbedder`, beside the model, that load an embedder with the same identity; JSON values.

    Args:
        embedder: An embedder that was loaded from a folder or by name.

    Returns:
        Prompts, budgets, sampling and dimension. Engine and revision are there only where they are not the default, so
        that what was written down before they existed reads the same.
    """
    pipeline, options = embedder.pipeline, embedder.pipeline.options
    described: dict[str, Any] = {
        "prompts": dict(embedder.prompts),
        "max_new_tokens": options.max_new_tokens,
        "max_seq_length": options.max_seq_length,
        **asdict(options.sampling),
        "truncate_dim": embedder.truncate_dim,
    }
    if pipeline.engine_name != DEFAULT_ENGINE or pipeline.engine_options:
        described |= {"engine": pipeline.engine_name, "engine_options": dict(pipeline.engine_options)}
    if (revision := pipeline.source.hub.get("revision")) is not None:
        described["revision"] = revision
    if embedder.centring is not None:
        described["centring"] = embedder.centring.describe()
    return described
