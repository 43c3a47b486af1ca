"""What a policy is: content hashes of its weights and tokenizer, for the cache's fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from grace_retrieval.errors import ModelLoadError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "TokenizerIdentity",
    "WeightsIdentity",
    "WeightsOrigin",
    "hash_checkpoint",
    "hash_tokenizer",
    "hash_weights",
    "weights_version",
]

_CHUNK = 1 << 26
_ORIGIN_FILE = "grace_weights.json"


@dataclass(frozen=True)
class WeightsOrigin:
    """The file that weights were converted from: they are called by it, whatever runs them, until they change.

    Attributes:
        content: Hash of the weights as they were converted, as `hash_weights` gives it.
        name: Identity of the file, such as "gguf-" and its sha256.
    """

    content: str
    name: str

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Keep it beside the weights."""
        text = json.dumps(asdict(self), indent=1) + "\n"
        Path(folder, _ORIGIN_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> WeightsOrigin | None:
        """What is kept in a folder; None where nothing is.

        Raises:
            ModelLoadError: If the file holds something else.
        """
        path = Path(folder, _ORIGIN_FILE)
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ModelLoadError(
                f"{path} is damaged ({error}). Remove it, and the weights go by their content."
            ) from error


def weights_version(model: nn.Module) -> tuple[object, ...]:
    """A cheap value that changes when weights change in place, move, or are replaced.

    The version counters miss what is done through `.data` (peft merges adapters so), hence the samples.
    """
    versions: list[object] = []
    samples: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for p in model.parameters():
        versions.append((p.data_ptr(), p.device, p.dtype, 0 if p.is_inference() else p._version))
        if p.numel() and not p.is_meta:
            samples.setdefault((p.device, p.dtype), []).append(p.detach().reshape(-1)[:: -(-p.numel() // 16)])
    for tensors in samples.values():
        versions.append(torch.cat(tensors).view(torch.uint8).cpu().numpy().tobytes())
    return tuple(versions)


def hash_weights(model: nn.Module) -> str:
    """Hash the weights as they are in memory, so that training or merging an adapter gives another identity.

    Args:
        model: The policy.

    Returns:
        32 hexadecimal digits over names, shapes, dtypes and bytes; independent of device and folder.
    """
    digest = hashlib.blake2b(digest_size=16, person=b"grace.weights.1")
    for name, tensor in sorted(model.state_dict().items()):
        _add_tensor(digest, name, tensor)
    return digest.hexdigest()


def hash_checkpoint(folder: Path, *, tied: bool = False) -> str:
    """Hash saved weights without loading a model, one tensor in memory at a time.

    The hash is that of `hash_weights` for a model whose weights are loaded under the names and dtypes of its files.

    Args:
        folder: A folder with safetensors files.
        tied: Whether the model's output layer is its input embedding, which files then hold once.

    Returns:
        32 hexadecimal digits.

    Raises:
        ModelLoadError: If there are no such files, or they are damaged.
    """
    from safetensors import SafetensorError, safe_open

    digest = hashlib.blake2b(digest_size=16, person=b"grace.weights.1")
    files = [path for path in sorted(folder.glob("*.safetensors")) if not path.name.startswith("adapter_")]
    if not files:
        raise ModelLoadError(f"{folder} has no *.safetensors file. Convert other weights with save_pretrained().")
    try:
        with ExitStack() as stack:
            opened = [stack.enter_context(safe_open(path, framework="pt")) for path in files]
            owners = {name: (file, name) for file in opened for name in file.keys()}
            inputs = [name for name in owners if name.endswith("embed_tokens.weight")]
            if tied and "lm_head.weight" not in owners and len(inputs) == 1:
                owners["lm_head.weight"] = owners[inputs[0]]
            for name, (file, saved) in sorted(owners.items()):
                _add_tensor(digest, name, file.get_tensor(saved))
    except (OSError, SafetensorError) as error:
        raise ModelLoadError(f"The weights in {folder} are damaged or cut short ({error}). Copy them again.") from error
    return digest.hexdigest()


def _add_tensor(digest: hashlib.blake2b, name: str, tensor: torch.Tensor) -> None:
    digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    for start in range(0, flat.numel(), _CHUNK):
        digest.update(flat[start : start + _CHUNK].cpu().numpy().data)


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash vocabulary, merges, added tokens and chat template.

    Args:
        tokenizer: The policy's tokenizer.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16, person=b"grace.tokens.1")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        # State of the last call, not part of what the tokenizer is.
        content.pop("padding", None)
        content.pop("truncation", None)
    else:
        content = tokenizer.get_vocab()
    added = {str(token): str(value) for token, value in tokenizer.added_tokens_decoder.items()}
    digest.update(json.dumps([content, added, tokenizer.chat_template], sort_keys=True).encode())
    return digest.hexdigest()


class WeightsIdentity:
    """Remembers the hash of a model's weights until they change.

    Args:
        origin: The file that they were converted from, if any.
    """

    def __init__(self, origin: WeightsOrigin | None = None) -> None:
        self._known: tuple[object, str] | None = None
        self._origin = origin

    def of(self, model: nn.Module) -> str:
        """Name of the origin while the weights are its, otherwise their hash, as `hash_weights` gives it."""
        version = weights_version(model)
        if self._known is None or self._known[0] != version:
            content = hash_weights(model)
            origin = self._origin
            self._known = (version, origin.name if origin is not None and origin.content == content else content)
        return self._known[1]

    def origin(self, model: nn.Module) -> WeightsOrigin | None:
        """Where the weights are from, if they are still those; None otherwise."""
        return self._origin if self._origin is not None and self.of(model) == self._origin.name else None


class TokenizerIdentity:
    """Remembers the hash of a tokenizer until it, its words or its chat template change."""

    def __init__(self) -> None:
        self._known: tuple[object, str] | None = None

    def of(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Hash of the tokenizer, as `hash_tokenizer` gives it."""
        version = (id(tokenizer), len(tokenizer), str(tokenizer.chat_template))
        if self._known is None or self._known[0] != version:
            self._known = (version, hash_tokenizer(tokenizer))
        return self._known[1]
