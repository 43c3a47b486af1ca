"""Policies by name: ours, and those that other packages bring under the entry point group `grace_retrieval.engines`.

An entry point names a function `load(source, **options)` that returns a `Policy`. `source` says where the model is; the
options are JSON values, because they are written down wherever an embedder is described. So a new back end is one file
and one entry point, and an index that was built with it opens again.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from grace_retrieval.engine import Policy
from grace_retrieval.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["DEFAULT_ENGINE", "GROUP", "PolicySource", "check_engine", "engine_names", "make_policy"]

GROUP = "grace_retrieval.engines"
DEFAULT_ENGINE = "transformers"


@dataclass(kw_only=True)
class PolicySource:
    """Where a policy comes from, for the function that loads it.

    Attributes:
        path: Folder, GGUF file or hub name.
        hub: For whatever downloads it: token, cache_folder, revision, local_files_only, subfolder, trust_remote_code;
            those that were given.
        kwargs: For transformers: model_kwargs, processor_kwargs, config_kwargs; those that were given.
        max_batch_tokens: Most tokens of a batch; None leaves it to the policy.
        max_length: Most tokens of a prompt with its rationale that will be asked for; None if that is not known.
        loaded: Model and tokenizer of transformers, once they are in memory.
    """

    path: str
    hub: dict[str, Any] = field(default_factory=dict)
    kwargs: dict[str, Any] = field(default_factory=dict)
    max_batch_tokens: int | None = None
    max_length: int | None = None
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = field(default=None, repr=False)

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Model and tokenizer by transformers: loaded once, and from then on the same, with what was trained since.

        Raises:
            ModelLoadError: If the model is missing, damaged, of another kind, or asks for remote code.
        """
        from grace_retrieval.loading import load_policy  # which loads torch

        if self.loaded is None:
            self.loaded = load_policy(self.path, **self.hub, **self.kwargs)
        return self.loaded

    def folder(self, dtype: str | None = None) -> str:
        """Folder or hub name that transformers and its like can read; a GGUF file is converted into one.

        Args:
            dtype: Number format of a converted file; None is what model_kwargs say, or what this machine runs fastest.
        """
        from grace_retrieval.loading import local_folder  # which loads torch

        return local_folder(self.path, dtype or self.kwargs.get("model_kwargs", {}).get("dtype"))[0]


LoadPolicy = Callable[..., Policy]
"""Takes a PolicySource, and options by name."""


def engine_names() -> list[str]:
    """Names of the engines that there are; none of them is imported."""
    return sorted({*_OURS, *_others()})


def check_engine(name: object, options: object) -> dict[str, Any]:
    """Refuse an engine that does not exist and options that cannot be written down.

    Args:
        name: Name of an engine.
        options: Its options.

    Returns:
        A copy of the options.

    Raises:
        InputError: If there is no engine of that name, or the options are no JSON object.
    """
    if name not in _OURS and name not in _others():
        raise InputError(
            f"engine={name!r}: give one of {', '.join(engine_names())}. An engine of another package is found by its "
            f"entry point in the group {GROUP!r}: is that package installed?"
        )
    options = {} if options is None else options
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        raise InputError(f"engine_options={options!r}: give a dict with names of options.")
    try:
        copied: dict[str, Any] = json.loads(json.dumps(dict(options), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"engine_options={dict(options)!r}: {error}. Give JSON values, which can be written down beside vectors."
        ) from error
    return copied


def make_policy(name: str, options: Mapping[str, Any], source: PolicySource) -> Policy:
    """Load a policy.

    Args:
        name: Name of the engine that runs it.
        options: Options of the engine.
        source: Where the model is.

    Raises:
        InputError: If there is no such engine, or it has no such option.
        MissingExtraError: If a package that it needs is not installed.
        ModelLoadError: If the model is missing or damaged.
    """
    options = check_engine(name, options)
    load: LoadPolicy = _OURS[name] if name in _OURS else _others()[name].load()
    try:
        inspect.signature(load).bind(source, **options)
    except TypeError as error:
        known = list(inspect.signature(load).parameters)[1:]
        raise InputError(
            f"engine_options={options!r} of the engine {name!r}: {error}. Its options: {', '.join(known) or 'none'}."
        ) from error
    policy = load(source, **options)
    if not isinstance(policy, Policy):
        lacking = [part for part in _PARTS if not hasattr(policy, part)]
        raise InputError(
            f"The engine {name!r} gave {type(policy).__name__}, which lacks {', '.join(lacking)} of a Policy. Mend the "
            "package that brings it."
        )
    return policy


def _transformers(source: PolicySource, *, max_batch_rows: int | None = None, draft: bool = True) -> Policy:
    from grace_retrieval.engines.transformers import TransformersEngine
    from grace_retrieval.identity import WeightsOrigin

    model, tokenizer = source.load()
    return TransformersEngine(
        model,
        tokenizer=tokenizer,
        # transformers remembers where it read the weights, which for a GGUF file is the folder it was converted into.
        origin=WeightsOrigin.read(model.name_or_path) if model.name_or_path else None,
        max_batch_tokens=source.max_batch_tokens,
        max_batch_rows=max_batch_rows,
        draft=draft,
    )


def _vllm(
    source: PolicySource,
    *,
    dtype: str | None = None,
    gpu_memory_utilization: float = 0.9,
    max_model_len: int | None = None,
    tensor_parallel_size: int = 1,
    enforce_eager: bool = False,
    sequential: bool = False,
) -> Policy:
    from grace_retrieval.engines.vllm import VLLMEngine

    policy = VLLMEngine(
        source.folder(dtype),
        dtype=dtype,  # type: ignore[arg-type]  # the engine checks it
        gpu_memory_utilization=gpu_memory_utilization,
        max_model_len=max_model_len,
        tensor_parallel_size=tensor_parallel_size,
        enforce_eager=enforce_eager,
        sequential=sequential,
        revision=source.hub.get("revision"),
        trust_remote_code=source.hub.get("trust_remote_code", False),
    )
    if max_model_len is None and source.max_length is not None:
        # All positions of a model of long context would take much memory, for texts that never come.
        policy.max_model_len = min(source.max_length, policy.context_length)
    return policy


def _llama_cpp(source: PolicySource, *, threads: int | None = None, max_batch_rows: int | None = None) -> Policy:
    from grace_retrieval.engines.llama_cpp import LlamaCppEngine

    return LlamaCppEngine(
        source.path,
        threads=threads,
        max_batch_rows=max_batch_rows,
        max_batch_tokens=source.max_batch_tokens,
        max_length=source.max_length,
    )


_OURS: dict[str, LoadPolicy] = {"llama-cpp": _llama_cpp, "transformers": _transformers, "vllm": _vllm}

_PARTS = (
    *("family", "dtype", "tokenizer", "context_length", "hidden_size", "end_tokens"),
    *("weights_id", "run", "states", "statistics", "close"),
)


def _others() -> dict[str, EntryPoint]:
    """Engines of other packages. A name of ours stays ours."""
    return {entry.name: entry for entry in entry_points(group=GROUP) if entry.name not in _OURS}
