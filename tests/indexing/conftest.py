"""Corpora and indexes of given vectors: no model is needed for most of what an index does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from grace_retrieval.indexing import BuildOptions, Document, GraceIndex, build_index

WORDS = "tide moon bread yeast glass sand bridge river honey bees engine steam copper wire lamp storm".split()


def make_documents(count: int, *, dimension: int = 16, seed: int = 0, start: int = 0) -> list[Document]:
    """Documents with random vectors of any length, and metadata to filter by."""
    rng = np.random.default_rng([seed, start])
    return [
        Document(
            id=f"d{number}",
            text=f"{WORDS[number % 16]} and {WORDS[number * 7 % 16]}, note {number}",
            title=f"On {WORDS[number % 16]}" if number % 3 else None,
            metadata={"kind": WORDS[number % 4], "number": number},
            vector=rng.standard_normal(dimension).astype(np.float32) * 3,
        )
        for number in range(start, start + count)
    ]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors at length 1."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def stored_rows(folder: Path, index: GraceIndex | None = None) -> dict[str, list]:
    """All rows of an index, read with pyarrow alone, in the order of the shards' names."""
    paths = sorted((folder / "shards").glob("*.parquet"))
    tables = [pq.read_table(path, partitioning=None) for path in paths]
    return {name: [value for table in tables for value in table[name].to_pylist()] for name in tables[0].column_names}


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Path]:
    """`build(documents, name="index", **options)`: an index of documents with vectors."""

    def make(documents: Sequence[Document], name: str = "index", **options: object) -> Path:
        folder = tmp_path / name
        build_index(documents, folder, options=BuildOptions(**{"shard_rows": 50, **options}))  # type: ignore[arg-type]
        return folder

    return make
