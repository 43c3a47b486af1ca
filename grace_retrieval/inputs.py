"""What may be handed to an embedder, checked and brought into one form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch

from grace_retrieval.errors import InputError
from grace_retrieval.prompt import check_texts
from grace_retrieval.rationale import Rationale

__all__ = ["POSITIONAL", "check_dimension", "check_role", "no_vectors", "read_inputs", "read_texts"]


POSITIONAL = (
    "output_value",
    "precision",
    "convert_to_numpy",
    "convert_to_tensor",
    "device",
    "normalize_embeddings",
    "truncate_dim",
    "pool",
    "chunk_size",
)
"""Arguments of `SentenceTransformer.encode` behind show_progress_bar, in their order."""


def check_role(role: object) -> None:
    """Refuse what is no role.

    Raises:
        InputError: If it is neither "query", "document" nor None.
    """
    if role not in (None, "query", "document"):
        raise InputError(f"role={role!r}: give 'query', 'document' or None.")


def check_dimension(truncate_dim: Any, width: int) -> int:
    """Number of dimensions that are kept.

    Args:
        truncate_dim: As it was asked for; None keeps all.
        width: How many there are.

    Raises:
        InputError: If it is no whole number from 1 to `width`.
    """
    if truncate_dim is None:
        return width
    whole = isinstance(truncate_dim, Integral) and not isinstance(truncate_dim, bool)
    if not whole or not 1 <= int(truncate_dim) <= width:
        raise InputError(
            f"truncate_dim={truncate_dim!r}: give a whole number from 1 to {width}, or None for all dimensions."
        )
    return int(truncate_dim)


def read_inputs(inputs: Any, rationales: Any) -> list[Any]:
    """Texts, or pairs of text and given rationale; anything else is refused."""
    if isinstance(inputs, (Mapping, set, frozenset)):
        raise InputError(
            f"The texts are {type(inputs).__name__}: give a list of strings, whose order the vectors keep."
        )
    if isinstance(inputs, str):
        inputs = [inputs]
    elif isinstance(inputs, (bytes, bytearray)) or not hasattr(inputs, "__iter__"):
        check_texts([inputs])
    texts = list(inputs)
    check_texts(texts)
    return texts if rationales is None else list(zip(texts, _read_rationales(rationales, len(texts)), strict=True))


def read_texts(texts: Any) -> list[str]:
    """A list of texts; a single one is refused rather than taken for a list of its characters."""
    if isinstance(texts, (str, bytes, Mapping)) or not hasattr(texts, "__iter__"):
        raise InputError(f"Several texts are given as a list, not as {type(texts).__name__}: write [text].")
    return list(texts)


def _read_rationales(rationales: Sequence[str | Rationale] | str | Rationale, texts: int) -> list[Any]:
    """Check given rationales and take the token ids where they are known."""
    given = [rationales] if isinstance(rationales, (str, Rationale)) else list(rationales)
    if len(given) != texts:
        raise InputError(f"{len(given)} rationales for {texts} texts: give one a text ('' for none).")
    check_texts([r.text if isinstance(r, Rationale) else r for r in given], what="rationale")
    return [r.token_ids if isinstance(r, Rationale) else r for r in given]


def no_vectors(found: Any, width: int, precision: str) -> Any:
    """What was found for no text, with vectors' width and dtype: an array or a tensor, or what it was.

    Args:
        found: What sentence-transformers gave.
        width: Dimensions of a vector.
        precision: As in `encode`; binary ones hold eight dimensions a byte.
    """
    if precision.endswith("binary"):
        width = (width + 7) // 8
    dtype = {"uint8": np.uint8, "ubinary": np.uint8, "int8": np.int8, "binary": np.int8}.get(precision, np.float32)
    empty: Any = np.zeros((0, width), dtype=dtype)
    if isinstance(found, np.ndarray):
        return empty
    return torch.from_numpy(empty) if isinstance(found, torch.Tensor) else found
