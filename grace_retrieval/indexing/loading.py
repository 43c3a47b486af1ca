"""How the embedder of an index is written down, and loaded again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace_retrieval.advice import advise
from grace_retrieval.bundled import BUNDLED_MODELS
from grace_retrieval.description import describe_options
from grace_retrieval.engines.by_name import DEFAULT_ENGINE
from grace_retrieval.errors import InputError, ModelLoadError, ModelMismatchError
from grace_retrieval.indexing.manifest import IndexManifest

if TYPE_CHECKING:
    from grace_retrieval.embedder import GraceEmbedder

__all__ = ["embedder_settings", "load_embedder", "load_for_index"]


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


def load_for_index(
    folder: str | os.PathLike[str],
    manifest: IndexManifest,
    *,
    model: str | os.PathLike[str] | None = None,
    engine: str | None = None,
    **options: Any,
) -> GraceEmbedder:
    """Load the embedder of an index. Whether its vectors go with those of the index is for the caller to check.

    Args:
        folder: Folder of the index, for messages.
        manifest: The index.
        model: Where the model is now: bundled model, folder or hub name. None takes it from where it was.
        engine: What runs it, in place of the engine that made the vectors; None is that one.
        **options: Arguments of `GraceEmbedder` that change no vector: cache, device, on_truncation, max_batch_tokens.

    Raises:
        InputError: If the index was built from given vectors, and no model is named.
        ModelLoadError: If the model is not there, or damaged.
    """
    name = ("name the model ({})", "--model", "embedder='NAME or folder'")
    if manifest.embedder is None:
        if model is None:
            raise InputError(
                f"{folder} was built from given vectors, so its model is not known. "
                + advise(name, ("search with vectors ({})", "--vectors", "index.search_vectors"))
            )
        from grace_retrieval.embedder import GraceEmbedder

        return GraceEmbedder(model, engine=engine or DEFAULT_ENGINE, **options)
    # Indexes that do not say it were built before rationales were stopped where they go in circles, or by sentences.
    settings = {"stop_repeats": False, "max_sentences": 0, **manifest.embedder}
    if engine is not None and engine != settings.get("engine", DEFAULT_ENGINE):
        settings |= {"engine": engine, "engine_options": {}, "dtype": "auto"}
    if model is not None:
        if str(model) != settings["model"]:
            settings.pop("revision", None)  # of the hub that the other one came from
        try:
            return load_embedder({**settings, "model": model}, **options)
        except InputError as error:
            if "centring" not in settings:
                raise
            raise ModelMismatchError(
                f"{folder} was built with the model {settings['model']!r}, and {str(model)!r} is another one: {error}"
            ) from error
    if os.path.isabs(settings["model"]) and not os.path.exists(settings["model"]):
        beside = f", nor at {manifest.model_path} beside it" if manifest.model_path else ""
        raise ModelLoadError(
            f"{folder} was built with the model {settings['model']}, and there is none any more{beside}. "
            + advise("put it back", ("say where it is now ({})", "--model", "embedder='folder'"))
        )
    return load_embedder(settings, **options)
