"""Loading a policy from a folder or hub name, with errors that say what is wrong and how to mend it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from grace_retrieval.adapters import Adapter, find_adapter, merged_folder
from grace_retrieval.bundled import BUNDLED_MODELS, SELF_CONTAINED
from grace_retrieval.errors import InputError, ModelLoadError
from grace_retrieval.fetching import FETCHED_MODELS, fetch, is_fetched_name
from grace_retrieval.gguf.convert import convert_gguf, fastest_dtype
from grace_retrieval.gguf.resolve import find_gguf
from grace_retrieval.near import did_you_mean
from grace_retrieval.threads import fit_torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["end_tokens", "load_policy", "local_folder", "no_advice_on_dtype", "resolve_model"]

LARGE = 50_000_000
"""Parameters from which bfloat16 is faster on a CPU that multiplies it; below, calls cost more than sums."""


def resolve_model(model: str | os.PathLike[str]) -> str:
    """The folder of a model: bundled, fetched (now, if need be) or given; a GGUF file; or a hub name as it is.

    Raises:
        ModelLoadError: If the name looks like a path and there is no such folder, or it holds several GGUF files.
    """
    if model in BUNDLED_MODELS:
        bundled = Path(str(files("grace_retrieval"))) / "models" / str(model)
        if not bundled.is_dir():
            raise ModelLoadError(
                f"{model!r} is missing from this installation. Install the package again: "
                "pip install --force-reinstall grace-retrieval"
            )
        return str(bundled)
    if is_fetched_name(model):
        return str(fetch(str(model)))
    path = Path(model).expanduser()
    if (gguf := find_gguf(path)) is not None:
        return str(gguf)
    if path.is_dir():
        return str(path)
    name = str(model)
    # Hub names are owner/name; without this check a misspelt folder would be looked for on the network.
    if path.exists() or isinstance(model, os.PathLike) or name.startswith((".", "~", "/")) or name.count("/") != 1:
        what = "is a file, not a folder" if path.exists() else "does not exist"
        raise ModelLoadError(
            f"{name!r} {what}. Give a model folder (with config.json and *.safetensors), a *.gguf file, a hub name "
            "of the form owner/name such as 'Qwen/Qwen2.5-1.5B-Instruct', a bundled model "
            f"({', '.join(BUNDLED_MODELS)}), or one that is fetched "
            f"({', '.join(name for name, known in FETCHED_MODELS.items() if known.writes)})."
        )
    folder, _, inside = name.partition("/")
    if os.path.isdir(folder) and not _is_downloaded(name):
        near = did_you_mean(inside, os.listdir(folder))
        raise ModelLoadError(
            f"{folder} is a folder here, and has no model {inside!r}.{near} If you mean the model of this name on the "
            f"hub, download it first (hf download {name}), or work in another folder."
        )
    return name


def _is_downloaded(name: str) -> bool:
    """Whether a copy of a hub's model is here."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        return False


def local_folder(name: str, dtype: str | torch.dtype | None = None) -> tuple[str, torch.dtype | None]:
    """What transformers can read: a GGUF file, or an adapter of one, is converted first; all else is as it is.

    Args:
        name: A folder, a GGUF file or a hub name.
        dtype: Number format that was asked for; None or "auto" is the one that this machine runs fastest.

    Returns:
        Folder or hub name, and the number format of a converted file (None for everything else).

    Raises:
        ModelLoadError: If a file is damaged or not known.
        InputError: If there is no such number format.
    """
    adapter = find_adapter(name)
    file = _base_of(adapter) if adapter is not None else name
    if not os.path.isfile(file):
        return name, None
    chosen = fastest_dtype() if dtype in (None, "auto") else read_dtype(dtype)
    with _no_bars_in_servers():
        if adapter is not None:
            return str(merged_folder(adapter, Path(file), chosen)), chosen
        return str(convert_gguf(Path(file), dtype=chosen)), chosen


def _base_of(adapter: Adapter) -> str:
    """Folder, file or hub name of an adapter's base."""
    try:
        return resolve_model(adapter.base)
    except ModelLoadError as error:
        if adapter.folder.name in BUNDLED_MODELS:
            raise ModelLoadError(
                f"{adapter.folder.name} is an adapter, and the policy that it belongs to is missing: {error} Without "
                f"it, the toy {SELF_CONTAINED!r} needs nothing to be fetched: model or --model {SELF_CONTAINED}."
            ) from error
        raise ModelLoadError(f"The base of the adapter in {adapter.folder} is missing: {error}") from error


def read_dtype(dtype: Any) -> torch.dtype:
    """A number format by its name.

    Raises:
        InputError: If there is no such format.
    """
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f"dtype={dtype!r}: give 'float32', 'bfloat16' or 'float16'.")
    return found


def load_policy(
    name: str,
    *,
    token: bool | str | None = None,
    cache_folder: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
    trust_remote_code: bool = False,
    model_kwargs: dict[str, Any] | None = None,
    processor_kwargs: dict[str, Any] | None = None,
    config_kwargs: dict[str, Any] | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer.

    Weights are read from safetensors only; a GGUF file is converted into them once, an adapter is put on its base.
    Without an explicit dtype, a model is loaded as it was saved on a GPU; without one in float32, unless it was saved
    in bfloat16, is worth it and the CPU multiplies that fast. One from a GGUF file comes in the format that the
    machine runs fastest.

    Raises:
        ModelLoadError: If the model is missing, damaged, not a causal language model, or asks for remote code.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"use_safetensors": True, **(config_kwargs or {}), **(model_kwargs or {})}
    adapter = find_adapter(os.path.join(name, subfolder))
    if adapter is not None and not os.path.isfile(base := _base_of(adapter)):
        return _load_adapted(
            base,
            adapter,
            options,
            token=token,
            cache_folder=cache_folder,
            local_files_only=local_files_only,
            trust_remote_code=trust_remote_code,
            processor_kwargs=processor_kwargs,
        )
    place = name if adapter is None else str(adapter.folder)
    name, converted = local_folder(place, options.get("dtype") or options.get("torch_dtype"))
    if converted is not None and adapter is not None:
        subfolder, revision = "", None
    if converted is not None:
        options["dtype"] = converted
    shared: dict[str, Any] = {
        "token": token,
        "cache_dir": cache_folder,
        "revision": revision,
        "local_files_only": local_files_only or os.path.isdir(name),
        "subfolder": subfolder,
        "trust_remote_code": trust_remote_code,
    }
    try:
        if "dtype" not in options and "torch_dtype" not in options:
            options["dtype"] = "auto" if torch.cuda.is_available() else _dtype_on_cpu(name, shared)
        with _no_bars_in_servers():
            tokenizer = AutoTokenizer.from_pretrained(name, **shared, **(processor_kwargs or {}))
            loaded: Any = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **shared, **options)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, SafetensorError, ...
        raise ModelLoadError(f"Cannot load the policy {name!r}: {_explain(name, error)}") from error
    model: PreTrainedModel = loaded[0]
    model.eval()
    _check_causal(name, model)
    if missing := sorted(loaded[1]["missing_keys"]):
        raise ModelLoadError(
            f"{name!r} lacks {len(missing)} of the weights of {type(model).__name__}, such as {missing[0]!r}: it is "
            "another kind of model, or damaged. They are not made up."
        )
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise ModelLoadError(f"{name!r} has no tokenizer. Save one beside the model with tokenizer.save_pretrained().")
    _check_vocabulary(name, model, tokenizer)
    if not torch.cuda.is_available():
        fit_torch(model.config.get_text_config().hidden_size)
    return model, tokenizer


def _dtype_on_cpu(name: str, where: Mapping[str, Any]) -> torch.dtype:
    """bfloat16 for a policy that was saved in it, is worth it, and meets a CPU that multiplies it; else float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if fastest_dtype() != torch.bfloat16:
        return torch.float32
    config = AutoConfig.from_pretrained(name, **where)
    if getattr(config, "dtype", None) != torch.bfloat16:
        return torch.float32
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=where["trust_remote_code"])
    return torch.bfloat16 if model.num_parameters() >= LARGE else torch.float32


def _load_adapted(
    base: str, adapter: Adapter, options: Mapping[str, Any], **hub: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An adapter merged into its base; with the tokenizer beside it, or else its base's."""
    from transformers import AutoTokenizer

    chosen = options.get("dtype") or options.get("torch_dtype")
    if chosen in (None, "auto"):
        chosen = fastest_dtype() if torch.cuda.is_available() else torch.float32
    dtype = read_dtype(chosen)
    model, tokenizer = load_policy(
        base, revision=adapter.revision, model_kwargs={**options, "dtype": torch.float32}, **hub
    )
    if adapter.has_tokenizer:
        tokenizer = AutoTokenizer.from_pretrained(adapter.folder, **(hub["processor_kwargs"] or {}))
        _check_vocabulary(str(adapter.folder), model, tokenizer)
    return adapter.merge(model, dtype), tokenizer


@contextmanager
def _no_bars_in_servers() -> Iterator[None]:
    """Keep transformers' progress bars out of logs: they are for terminals."""
    from transformers.utils import logging

    if os.isatty(2) or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


@contextmanager
def no_advice_on_dtype() -> Iterator[None]:
    """Keep back sentence-transformers' warning that 16 bits may be slow on a CPU: it is chosen where it is not."""

    def wanted(record: logging.LogRecord) -> bool:
        return "Depending on your CPU, inference may be" not in record.getMessage()

    logger = logging.getLogger("sentence_transformers.base.model")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """All tokens that end a turn: those of the tokenizer, of the model and of its generation config."""
    found: set[int] = set()
    for value in (
        tokenizer.eos_token_id,
        getattr(model.config, "eos_token_id", None),
        getattr(model.generation_config, "eos_token_id", None),
    ):
        found.update(value if isinstance(value, (list, tuple)) else [value] if value is not None else [])
    return sorted(found)


def _check_causal(name: str, model: PreTrainedModel) -> None:
    """Refuse encoders that transformers would load behind a language-model head."""
    tokens = torch.tensor([[1, 2, 3, 4]]) % model.config.get_text_config().vocab_size
    changed = tokens.clone()
    changed[0, -1] = 0
    with torch.inference_mode():
        first, second = (model.base_model(ids.to(model.device)).last_hidden_state[0] for ids in (tokens, changed))
    early, last = (first - second)[:-1].abs().max(), (first - second)[-1].abs().max()
    if not model.config.is_encoder_decoder and not early > 1e-3 * last:
        return
    raise ModelLoadError(
        f"{name!r} ({type(model).__name__}) is not a causal language model: it looks ahead, so it cannot write a "
        "rationale. Use a decoder such as Qwen, Llama or Mistral, and open embedding models with SentenceTransformer."
    )


def _check_vocabulary(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer whose words the model has no embeddings for: the first of them would raise an IndexError."""
    embeddings: Any = model.get_input_embeddings()
    rows = int(embeddings.weight.shape[0])
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= rows:
        raise ModelLoadError(
            f"The tokenizer of {name!r} has token ids up to {largest}, and the model has embeddings for {rows} (ids 0 "
            f"to {rows - 1}): words were added to one and not to the other. Call "
            "model.resize_token_embeddings(len(tokenizer)) and save both again, or save the model's own tokenizer."
        )


def _explain(name: str, error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if "trust_remote_code" in text:
        return (
            "it asks for Python code of its own to be run. If you trust it and have read that code, load it with "
            "trust_remote_code=True."
        )
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            return "the folder has no config.json, so it is not a model folder."
        if not any(folder.glob("*.safetensors")):
            return "the folder has no *.safetensors file. Convert other weights with save_pretrained()."
        if type(error).__name__ == "SafetensorError" or "header" in text.lower():
            return f"its weights are damaged or cut short ({text}). Download or copy the folder again."
    return text
