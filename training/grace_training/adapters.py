"""An adapter that is trained further, instead of a new one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from grace_retrieval.adapters import Adapter, find_adapter
from grace_retrieval.errors import InputError
from grace_retrieval.loading import resolve_model

if TYPE_CHECKING:
    from peft import PeftModel

    from grace_retrieval import GraceEmbedder

__all__ = ["find_trained", "trainable_adapter"]


def find_trained(name: str | os.PathLike[str]) -> Adapter:
    """The adapter of a folder, or a bundled one.

    Raises:
        InputError: If there is no adapter.
        ModelLoadError: If there is no such folder, or the adapter is damaged.
    """
    adapter = find_adapter(resolve_model(name))
    if adapter is None:
        raise InputError(
            f"adapter={str(name)!r} is no adapter: give a folder with adapter_config.json and "
            "adapter_model.safetensors, or name a whole model as model."
        )
    return adapter


def trainable_adapter(name: str | os.PathLike[str], embedder: GraceEmbedder) -> PeftModel:
    """Put an adapter on an embedder's policy, to be trained further.

    Args:
        name: Folder of the adapter, or a bundled one.
        embedder: Has the policy that the adapter was trained on.

    Returns:
        The policy, in its number format, with its adapter in float32.

    Raises:
        InputError: If there is no adapter.
        ModelLoadError: If it belongs to another policy.
    """
    adapter = find_trained(name)
    adapter.check_base(embedder.fingerprint().weights, "the policy")
    adapted: PeftModel = adapter.put_on(embedder.pipeline.module, trainable=True)
    return adapted
