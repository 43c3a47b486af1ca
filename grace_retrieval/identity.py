"""What a policy is: content hashes of its weights and tokenizer, for the cache's fingerprint."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

__all__ = ["PolicyIdentity", "hash_tokenizer", "hash_weights", "weights_version"]

_CHUNK = 1 << 26


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
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().contiguous().flatten().view(torch.uint8)
        for start in range(0, flat.numel(), _CHUNK):
            digest.update(flat[start : start + _CHUNK].cpu().numpy().data)
    return digest.hexdigest()


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


class PolicyIdentity:
    """Remembers the hashes of a policy until its weights, its tokenizer or the chat template change."""

    def __init__(self) -> None:
        self._known: tuple[object, str, str] | None = None

    def hashes(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
        """Hashes of weights and tokenizer, each 32 hexadecimal digits."""
        version = (weights_version(model), id(tokenizer), len(tokenizer), str(tokenizer.chat_template))
        if self._known is None or self._known[0] != version:
            self._known = (version, hash_weights(model), hash_tokenizer(tokenizer))
        return self._known[1], self._known[2]
