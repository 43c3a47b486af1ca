"""The modules of an embedder, in their order: the policy, mean pooling, length 1, and centring if there is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from grace_retrieval.centring import Centring
from grace_retrieval.errors import InputError
from grace_retrieval.prompt import DOCUMENT_PROMPT, QUERY_PROMPT
from grace_retrieval.rationale_transformer import ChosenModule, RationaleTransformer
from grace_retrieval.stock import Normalize, Pooling, SentenceTransformer

__all__ = ["LOADING", "default_modules", "own_module", "place_centring", "with_default_prompts"]

LOADING = ("token", "cache_folder", "model_kwargs", "processor_kwargs", "config_kwargs")
"""Arguments of SentenceTransformer that say how a model in a file is loaded."""


def default_modules(path: str, chosen: Mapping[str, Any], **kwargs: Any) -> list[nn.Module]:
    """A plain causal LM as policy, mean pooling and normalisation.

    Args:
        path: Folder, GGUF file or hub name.
        chosen: As in `RationaleTransformer.load`.
        **kwargs: What sentence-transformers passes on, see there.
    """
    writer = RationaleTransformer.load(path, chosen=chosen, **kwargs)
    pooling = Pooling(writer.get_embedding_dimension(), pooling_mode="mean", include_prompt=False)
    return [writer, pooling, Normalize()]


def with_default_prompts(prompts: Mapping[str, str | None] | None) -> dict[str, str]:
    """Prompts by role; those that are not given are the package's own."""
    given = {role: prompt for role, prompt in (prompts or {}).items() if prompt is not None}
    return {"query": QUERY_PROMPT, "document": DOCUMENT_PROMPT, **given}


def own_module(class_ref: str, chosen: Mapping[str, Any]) -> type | None:
    """What loads a module of ours, by the name that a saved model has for it; None for those of others."""
    ours = {RationaleTransformer: cast(type, ChosenModule(chosen)), Centring: Centring}
    return next((loads for kind, loads in ours.items() if class_ref == f"{kind.__module__}.{kind.__qualname__}"), None)


def place_centring(model: SentenceTransformer, centring: Centring | None, dimension: int) -> None:
    """Put a centring behind the module that makes vectors of length 1, in place of the one that is there.

    Args:
        model: The embedder.
        centring: The new one; None takes the old one away.
        dimension: Dimensions of the policy's vectors.

    Raises:
        InputError: If it is of other dimensions; nothing is changed.
    """
    if centring is not None and len(centring.document) != dimension:
        raise InputError(
            f"centring of {len(centring.document)} dimensions, and the model's vectors have {dimension}: fit it on "
            "vectors of this model."
        )
    modules = list(model)
    place = next((place for place, module in enumerate(modules) if isinstance(module, Centring)), None)
    if place is not None:
        modules[place : place + 2] = []
    if centring is not None:
        modules += [centring, Normalize()]
    model._modules.clear()
    for number, module in enumerate(modules):
        model.add_module(str(number), module)
