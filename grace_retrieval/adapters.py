"""A PEFT folder as a model: its adapter, merged into the base that it names."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from grace_retrieval.errors import ModelLoadError
from grace_retrieval.gguf.architectures import build_config
from grace_retrieval.gguf.convert import count_parameters, load_model
from grace_retrieval.gguf.header import GGUFHeader, hash_file
from grace_retrieval.gguf.tokenizers import build_tokenizer
from grace_retrieval.identity import WeightsOrigin, hash_weights
from grace_retrieval.model_cache import made_once

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Adapter", "cast_weights", "find_adapter", "merged_folder"]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_BASE = "grace_base.json"
"""Says by content which base an adapter was trained on, where that is known: {"identity": "gguf-" and a sha256}."""

_VERSION = 1
"""Raised whenever the same adapter and base would be merged into something else."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter that PEFT saved.

    Attributes:
        folder: Its folder.
        base: The model that it belongs to, as the folder names it: a folder (also beside this one), a GGUF file, a name
            of `grace fetch --list`, a bundled model or a hub name.
        revision: Revision of the base on the hub; None for the newest.
    """

    folder: Path
    base: str
    revision: str | None

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer was saved beside the adapter."""
        return (self.folder / "tokenizer_config.json").is_file()

    @property
    def base_identity(self) -> str | None:
        """Identity of the base, if the folder says which content it was trained on.

        Raises:
            ModelLoadError: If what the folder says is damaged.
        """
        path = self.folder / _BASE
        if not path.is_file():
            return None
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["identity"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelLoadError(f"{path} is damaged ({error}). Copy the adapter again.") from error

    def check_base(self, identity: str, name: str) -> None:
        """Refuse a base other than the one that the folder says it was trained on, if it says so.

        Args:
            identity: Identity of the base's weights, as in a fingerprint.
            name: What the base is called in the message.

        Raises:
            ModelLoadError: If it is another one; both are named.
        """
        if (known := self.base_identity) not in (None, identity):
            raise ModelLoadError(
                f"The adapter in {self.folder} was trained on {known}, and {name} is {identity}: another policy would "
                "give other vectors. Fetch or copy the one that it was trained on."
            )

    def merge(self, model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
        """Add the adapter to the weights of its base.

        The sum is formed in float32 and cast afterwards: in bfloat16 most of a small adapter is lost to rounding.

        Args:
            model: The base, in float32.
            dtype: Number format of the result.

        Raises:
            ModelLoadError: If the adapter is damaged, or one of another model.
        """
        merged: PreTrainedModel = self.put_on(model).merge_and_unload(safe_merge=True)
        cast_weights(merged, dtype)
        merged.eval()
        return merged

    def put_on(self, model: PreTrainedModel, *, trainable: bool = False) -> Any:
        """Put the adapter around a model, whose modules it changes.

        Args:
            model: The base.
            trainable: Whether its weights are to be trained; they are in float32 then.

        Returns:
            PEFT's PeftModel.

        Raises:
            ModelLoadError: If the adapter is damaged, or one of another model.
        """
        from peft import PeftModel

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what is missing is an error here
                adapted: Any = PeftModel.from_pretrained(
                    model, str(self.folder), torch_device="cpu", is_trainable=trainable
                )
        except Exception as error:  # PEFT raises ValueError, RuntimeError, KeyError, SafetensorError, ...
            raise ModelLoadError(
                f"The adapter in {self.folder} cannot be put on {self.base!r}: {str(error).splitlines()[0]}. It is "
                f"damaged, or was trained on another model than the one that {_CONFIG} names."
            ) from error
        self._check(adapted)
        if trainable:
            # Whenever adapters are saved, PEFT looks for the vocabulary of this name, on the hub if it is no folder.
            adapted.peft_config["default"].base_model_name_or_path = model.name_or_path
        return adapted

    def _check(self, adapted: Any) -> None:
        """Refuse weights that have no place in the base, which PEFT leaves out without a word."""
        from safetensors import safe_open

        with safe_open(self.folder / _WEIGHTS, framework="pt") as weights:
            saved = set(weights.keys())
        there = {name.replace(".default", "").replace(".modules_to_save", "") for name in adapted.state_dict()}
        if lost := sorted(saved - there):
            raise ModelLoadError(
                f"The adapter in {self.folder} holds {len(lost)} weights that {self.base!r} has no place for, such as "
                f"{lost[0]!r}: it was trained on another model. Name that one as base_model_name_or_path in {_CONFIG}."
            )


def merged_folder(adapter: Adapter, base: Path, dtype: torch.dtype) -> Path:
    """Merge an adapter into a GGUF file, once; what is in the cache folder is opened without PEFT.

    Args:
        adapter: The adapter.
        base: The file that it belongs to.
        dtype: Number format of the result.

    Returns:
        A model folder with config.json, safetensors and tokenizer.

    Raises:
        ModelLoadError: If adapter or base is damaged, they do not belong together, or there is no space for the folder.
    """
    identity = f"gguf-{hash_file(base)}"
    adapter.check_base(identity, str(base))
    digest = hashlib.sha256(identity.encode())
    for name in (_CONFIG, _WEIGHTS, "tokenizer.json"):
        if (adapter.folder / name).is_file():
            digest.update((adapter.folder / name).read_bytes())
    merged = digest.hexdigest()

    def write(folder: Path) -> None:
        header = GGUFHeader(base)
        model = adapter.merge(load_model(header, build_config(header), torch.float32), dtype)
        model.save_pretrained(folder)
        if adapter.has_tokenizer:
            AutoTokenizer.from_pretrained(adapter.folder).save_pretrained(folder)
        else:
            build_tokenizer(header).save_pretrained(folder)
        WeightsOrigin(content=hash_weights(model), name=f"adapter-{merged}").write(folder)

    from transformers import AutoTokenizer

    return made_once(
        f"adapter-{merged[:32]}-{str(dtype).removeprefix('torch.')}-{_VERSION}",
        write,
        source=adapter.folder,
        size=lambda: count_parameters(GGUFHeader(base)) * dtype.itemsize,
    )


def cast_weights(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give the weights of a model another number format, in place.

    `model.to(dtype)` would round the frequencies of rotary positions too, which transformers keeps in float32 in every
    model that it loads: far tokens would stand elsewhere.
    """
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    model.config.dtype = dtype


def find_adapter(name: str) -> Adapter | None:
    """The adapter in a folder; None if it holds none, or a whole model.

    Raises:
        ModelLoadError: If the adapter lacks its base or its weights, or has them as a pickle only.
    """
    folder = Path(name)
    if not (folder / _CONFIG).is_file() or (folder / "config.json").is_file():
        return None
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        base = config.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelLoadError(f"{folder / _CONFIG} is damaged ({error}). Save the adapter again.") from error
    if not isinstance(base, str) or not base.strip():
        raise ModelLoadError(
            f"{folder} holds an adapter that does not say what it was trained on. Write the model's folder or name "
            f"into {_CONFIG}, as base_model_name_or_path."
        )
    if not (folder / _WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        raise ModelLoadError(
            f"{folder} has no {_WEIGHTS}"
            + (", and adapter_model.bin is a pickle, which may run code. " if pickled else ". ")
            + "Save the adapter again with save_pretrained()."
        )
    if not os.path.isabs(base) and (folder / base).exists():
        base = str(folder / base)
    return Adapter(folder=folder, base=base, revision=config.get("revision"))
