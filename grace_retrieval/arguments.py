"""Arguments of GraceEmbedder, checked before torch or sentence-transformers stumble over them."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

import torch

from grace_retrieval.advice import advise
from grace_retrieval.errors import InputError
from grace_retrieval.near import did_you_mean
from grace_retrieval.stock import SentenceTransformer

__all__ = ["check_device", "check_encoding", "check_loading", "check_vectors", "unknown_argument"]

_PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")
_OUTPUTS = ("sentence_embedding", "token_embeddings", None)


def check_device(device: object) -> None:
    """Refuse a device that this machine, or this build of torch, does not have.

    Args:
        device: Such as "cpu" or "cuda:0"; None is left to sentence-transformers.

    Raises:
        InputError: If it cannot be used; the reason is named.
    """
    if device is None:
        return
    try:
        if not isinstance(device, (str, torch.device)):
            raise TypeError(f"it is {type(device).__name__}, not a string")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"device={str(device)!r} cannot be used ({reason}). "
            + advise(("give cpu ({})", "--device cpu", "device='cpu'"), "leave it out")
        ) from error


def check_loading(model: object, device: object, arguments: Mapping[str, Any]) -> None:
    """Refuse what no embedder can be loaded with.

    Args:
        model: What was given as model; None where modules are.
        device: Device.
        arguments: For SentenceTransformer.

    Raises:
        InputError: If the model is no name or folder, the device cannot be used, or prompts are no mapping.
    """
    if (backend := arguments.get("backend", "torch")) != "torch":
        raise InputError(
            f"backend={backend!r}: policies that write run in torch; leave backend out. What runs the "
            "policy is chosen by engine=."
        )
    is_name = isinstance(model, (str, os.PathLike)) and str(model)
    if arguments.get("modules") is None and not is_name:
        shown = repr(model) if isinstance(model, (str, type(None))) else type(model).__name__
        raise InputError(
            f"model is {shown}: give a bundled model ('grace-small', 'grace-nano'), a folder, or a name on the hub "
            "such as 'Qwen/Qwen2.5-1.5B-Instruct'."
        )
    prompts = arguments.get("prompts")
    if prompts is not None and not (
        isinstance(prompts, Mapping) and all(isinstance(prompt, (str, type(None))) for prompt in prompts.values())
    ):
        raise InputError(f"prompts={prompts!r}: give a mapping from 'query' and 'document' to system prompts.")
    check_device(device)


def check_encoding(
    batch_size: object,
    prompt_name: object,
    prompts: Mapping[str, Any],
    arguments: Mapping[str, Any],
    own: tuple[str, ...],
) -> None:
    """Refuse arguments of `encode` that name nothing.

    Args:
        batch_size: As it was given.
        prompt_name: As it was given.
        prompts: Those there are.
        arguments: The others.
        own: Names that SentenceTransformer does not know.

    Raises:
        InputError: If one is unknown or out of range; with names that are near.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or batch_size < 1:
        raise InputError(f"batch_size={batch_size!r}: give a positive number.")
    if prompt_name is not None and prompt_name not in prompts:
        near = did_you_mean(str(prompt_name), prompts)
        raise InputError(f"prompt_name={prompt_name!r} not found: there are {', '.join(map(repr, prompts))}.{near}")
    known = {*inspect.signature(SentenceTransformer.encode).parameters, *own} - {"self", "kwargs"}
    for name, value in arguments.items():
        if name not in known:
            raise InputError(f"encode takes no {name}={value!r:.80}.{did_you_mean(name, known)}")
    for name, allowed in (("precision", _PRECISIONS), ("output_value", _OUTPUTS)):
        if name in arguments and arguments[name] not in allowed:
            near = did_you_mean(str(arguments[name]), [str(value) for value in allowed])
            raise InputError(f"{name}={arguments[name]!r}: give one of {', '.join(map(repr, allowed))}.{near}")
    devices = arguments.get("device")
    for device in devices if isinstance(devices, list) else [devices]:
        check_device(device)


def unknown_argument(error: TypeError, own: Iterable[str]) -> TypeError:
    """An error about an argument that GraceEmbedder does not take, with names that are near.

    Args:
        error: As Python raised it.
        own: Our arguments.
    """
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if found is None:
        return error
    known = {*inspect.signature(SentenceTransformer.__init__).parameters, *own, "cache"} - {"self"}
    return TypeError(f"GraceEmbedder takes no argument {found[1]!r}.{did_you_mean(found[1], known)}")


def check_vectors(*embeddings: object) -> None:
    """Refuse texts where vectors are compared.

    Raises:
        InputError: If one is a string, or holds one.
    """
    for found in embeddings:
        if isinstance(found, str) or (
            isinstance(found, (list, tuple)) and any(isinstance(item, str) for item in found)
        ):
            raise InputError(
                "similarity compares vectors, and these are texts: embed them first, "
                "similarity(encode_query(queries), encode_document(documents))."
            )
