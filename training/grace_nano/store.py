"""Tokenised examples on disk: flat arrays of ids and kinds, with offsets."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["CONTEXT", "RATIONALE", "TEXT", "Example", "ExampleStore"]

CONTEXT = 0
"""Kind of a token that is never a target: system turn, headers."""
TEXT = 1
"""Kind of a token of the user's text, or of plain text in the language modelling phase."""
RATIONALE = 2
"""Kind of a token of the rationale, its end token included."""


@dataclass(frozen=True)
class Example:
    """One training example.

    Attributes:
        ids: Token ids. Shape: (length,), dtype uint16.
        kinds: CONTEXT, TEXT or RATIONALE for every token. Shape: (length,), dtype uint8.
    """

    ids: npt.NDArray[np.uint16]
    kinds: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.ids)


class ExampleStore:
    """All examples of one source, as three flat arrays.

    Args:
        ids: Ids of all examples behind one another. Shape: (tokens,).
        kinds: Kinds of the same tokens. Shape: (tokens,).
        offsets: Start of every example, and the end of the last. Shape: (examples + 1,).
    """

    def __init__(
        self, ids: npt.NDArray[np.uint16], kinds: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]
    ) -> None:
        self.ids = ids
        self.kinds = kinds
        self.offsets = offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Example:
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return Example(self.ids[start:end], self.kinds[start:end])

    @classmethod
    def build(cls, examples: Iterable[tuple[list[int], list[int]]]) -> ExampleStore:
        """Collect (ids, kinds) pairs into a store."""
        ids: list[npt.NDArray[np.uint16]] = []
        kinds: list[npt.NDArray[np.uint8]] = []
        for example_ids, example_kinds in examples:
            ids.append(np.asarray(example_ids, dtype=np.uint16))
            kinds.append(np.asarray(example_kinds, dtype=np.uint8))
        offsets = np.concatenate([[0], np.cumsum([len(part) for part in ids])]).astype(np.int64)
        return cls(np.concatenate(ids), np.concatenate(kinds), offsets)

    def save(self, folder: Path) -> None:
        """Write the three arrays into `folder`; a run that has the old ones mapped keeps them."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in (("ids", self.ids), ("kinds", self.kinds), ("offsets", self.offsets)):
            staging = folder / f".{name}.tmp.npy"
            np.save(staging, array, allow_pickle=False)
            os.replace(staging, folder / f"{name}.npy")

    @classmethod
    def load(cls, folder: Path) -> ExampleStore:
        """Map the arrays of `folder` into memory."""
        ids, kinds, offsets = (
            np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ("ids", "kinds", "offsets")
        )
        return cls(ids, kinds, offsets)
