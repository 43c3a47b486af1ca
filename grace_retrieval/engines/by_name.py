"""Engines by name: ours, and those that other packages bring under the entry point group `grace_retrieval.engines`.

An entry point names a function `make(policy, **options)` that returns a `RationaleEngine`. `policy` is a LoadedPolicy;
the options are JSON values, because they are written down wherever an embedder is described. So a new engine is one
file and one entry point, and an index that was built with it opens again.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from grace_retrieval.engine import RationaleEngine
from grace_retrieval.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["DEFAULT_ENGINE", "GROUP", "LoadedPolicy", "check_engine", "engine_names", "make_engine"]

GROUP = "grace_retrieval.engines"
DEFAULT_ENGINE = "transformers"


@dataclass(frozen=True, kw_only=True)
class LoadedPolicy:
    """What an embedder has loaded, for the function that makes its engine.

    Attributes:
        name: Folder, bundled model or hub name.
        revision: Revision of a model on the hub; None for its newest.
        model: The policy, with its language-model head.
        tokenizer: Its tokenizer.
        end_tokens: Tokens that end a rationale.
        max_batch_tokens: Most tokens of a batch; None leaves it to the engine.
        max_length: Most tokens of a prompt with its rationale.
    """

    name: str
    revision: str | None
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    end_tokens: tuple[int, ...]
    max_batch_tokens: int | None
    max_length: int


MakeEngine = Callable[..., RationaleEngine]
"""Takes a LoadedPolicy, and options by name."""


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


def make_engine(name: str, options: Mapping[str, Any], policy: LoadedPolicy) -> RationaleEngine:
    """Make an engine.

    Args:
        name: Its name.
        options: Its options.
        policy: What the embedder has loaded.

    Raises:
        InputError: If there is no such engine, or it has no such option.
        MissingExtraError: If a package that it needs is not installed.
    """
    options = check_engine(name, options)
    make: MakeEngine = _OURS[name] if name in _OURS else _others()[name].load()
    try:
        inspect.signature(make).bind(policy, **options)
    except TypeError as error:
        known = [parameter for parameter in list(inspect.signature(make).parameters)[1:]]
        raise InputError(
            f"engine_options={options!r} of the engine {name!r}: {error}. Its options: {', '.join(known) or 'none'}."
        ) from error
    engine = make(policy, **options)
    if not isinstance(engine, RationaleEngine):
        raise InputError(
            f"The engine {name!r} is {type(engine).__name__}, which lacks a part of RationaleEngine: family, dtype, "
            "run and statistics. Mend the package that brings it."
        )
    return engine


def _transformers(policy: LoadedPolicy, *, max_batch_rows: int | None = None, draft: bool = True) -> RationaleEngine:
    from grace_retrieval.engines.transformers import TransformersEngine

    return TransformersEngine(
        policy.model,
        end_tokens=policy.end_tokens,
        max_batch_tokens=policy.max_batch_tokens,
        max_batch_rows=max_batch_rows,
        draft=draft,
    )


def _vllm(
    policy: LoadedPolicy,
    *,
    dtype: str | None = None,
    gpu_memory_utilization: float = 0.9,
    max_model_len: int | None = None,
    tensor_parallel_size: int = 1,
    enforce_eager: bool = False,
    sequential: bool = False,
) -> RationaleEngine:
    from grace_retrieval.engines.vllm import VLLMEngine

    return VLLMEngine(
        policy.name,
        end_tokens=policy.end_tokens,
        dtype=dtype,  # type: ignore[arg-type]  # the engine checks it
        gpu_memory_utilization=gpu_memory_utilization,
        max_model_len=policy.max_length if max_model_len is None else max_model_len,
        tensor_parallel_size=tensor_parallel_size,
        enforce_eager=enforce_eager,
        sequential=sequential,
        revision=policy.revision,
    )


_OURS: dict[str, MakeEngine] = {"transformers": _transformers, "vllm": _vllm}


def _others() -> dict[str, EntryPoint]:
    """Engines of other packages. A name of ours stays ours."""
    return {entry.name: entry for entry in entry_points(group=GROUP) if entry.name not in _OURS}
