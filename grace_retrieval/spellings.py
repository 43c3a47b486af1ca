"""What other embedding classes call things: HuggingFaceEmbeddings of LangChain, HuggingFaceEmbedding of LlamaIndex.

Their arguments are taken where they mean the same here, and refused in a line that says what to write instead where
they do not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from grace_retrieval.errors import InputError
from grace_retrieval.near import did_you_mean

__all__ = ["translated"]

_NAMES = {
    "show_progress_bar": "show_progress",
    "max_length": "max_seq_length",
}
_QUERY = {"query_instruction": "query", "text_instruction": "document"}
_INSTEAD = {
    "multi_process": "one process writes in batches of its own; use engine='vllm', or grace index build --runner ray",
    "trust_remote_code": "code of a model's repository is never run here; give a model that transformers knows",
    "pooling": "vectors are means over text and rationale; leave it out",
    "precision": "vector stores are given float32; quantise in the store, or use GraceEmbedder.encode(precision=...)",
    "prompt_name": "queries and documents have their own prompts: prompts={'query': ..., 'document': ...}",
    "normalize": "vectors always have length 1; leave it out",
    "normalize_embeddings": "vectors always have length 1; leave it out",
}
_HARMLESS = {
    "multi_process": False,
    "trust_remote_code": False,
    "normalize": True,
    "normalize_embeddings": True,
    "precision": "float32",
}
_OF_ENCODE = {"batch_size", "convert_to_numpy", "convert_to_tensor", "device"}
"""Arguments of `encode` that change no vector here: batches are formed by tokens, and results are lists."""
_TO_TRANSFORMERS = {"dtype", "torch_dtype", "attn_implementation", "device_map", "quantization_config"}


def translated(data: Mapping[str, Any], model_field: str, fields: Collection[str]) -> dict[str, Any]:
    """Arguments as they are called here.

    Args:
        data: Arguments as they were given.
        model_field: What the model is called here: "model" or "model_name".
        fields: All names here.

    Returns:
        The arguments by their names here.

    Raises:
        InputError: If one has no meaning here, or the same is given twice and differently.

    Example:
        >>> translated({"model_name": "grace-nano", "encode_kwargs": {"batch_size": 8}}, "model", ["model"])
        {'model': 'grace-nano'}
    """
    found: dict[str, Any] = {}
    prompts: dict[str, Any] = {}

    def take(name: str, value: Any, given: str) -> None:
        if name in found and found[name] != value:
            raise InputError(f"{given}={value!r} and {name}={found[name]!r} contradict each other: give one of them.")
        found[name] = value

    for name, value in data.items():
        if name in ("model", "model_name"):
            take(model_field, value, name)
        elif name == "encode_kwargs":
            _encode(value or {}, take, prompts, ("query", "document"), name)
        elif name == "query_encode_kwargs":
            _encode(value or {}, take, prompts, ("query",), name)
        elif name == "model_kwargs" and isinstance(value, Mapping):
            _model(value, take, fields)
        elif name in _QUERY and name not in fields:
            prompts[_QUERY[name]] = value
        elif name in _INSTEAD and name not in fields:
            _refuse(name, value)
        elif name in fields or name not in _NAMES:
            if name not in fields and (near := did_you_mean(name, fields)):
                raise InputError(f"{name}={value!r}: no such option.{near}")
            take(name, value, name)
        else:
            take(_NAMES[name], value, name)
    if prompts := {role: prompt for role, prompt in prompts.items() if prompt is not None}:
        found["prompts"] = {**prompts, **(found.get("prompts") or {})}
    return found


def _encode(values: Any, take: Any, prompts: dict[str, Any], roles: tuple[str, ...], given: str) -> None:
    if not isinstance(values, Mapping):
        raise InputError(f"{given}={values!r}: give a mapping.")
    for name, value in values.items():
        if name == "prompt":
            prompts.update(dict.fromkeys(roles, value))
        elif name in ("show_progress_bar", "truncate_dim"):
            take(_NAMES.get(name, name), value, f"{given}[{name!r}]")
        elif name in _INSTEAD:
            _refuse(name, value)
        elif name not in _OF_ENCODE:
            known = {*_INSTEAD, *_OF_ENCODE, "prompt", "show_progress_bar", "truncate_dim"}
            raise InputError(f"{given}: {name}={value!r} means nothing here.{did_you_mean(name, known)} Leave it out.")


def _model(values: Mapping[str, Any], take: Any, fields: Collection[str]) -> None:
    """Arguments of SentenceTransformer, among which those of transformers are called model_kwargs again."""
    own: dict[str, Any] = {}
    for name, value in values.items():
        if name == "model_kwargs" and isinstance(value, Mapping):
            own.update(value)
        elif name in _INSTEAD:
            _refuse(name, value)
        elif name in fields and name not in _TO_TRANSFORMERS:
            take(name, value, f"model_kwargs[{name!r}]")
        else:
            own[name] = value
    if own or not values:
        take("model_kwargs", own, "model_kwargs")


def _refuse(name: str, value: Any) -> None:
    if value is not None and _HARMLESS.get(name, value is None) != value:
        raise InputError(f"{name}={value!r}: {_INSTEAD[name]}.")
