"""The last step of every change: a FAISS index over the shards, and the manifest that makes both the index."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grace_retrieval.indexing.choose import IndexChoice, choose_index
from grace_retrieval.indexing.faiss_store import build_faiss, check_factory, import_faiss
from grace_retrieval.indexing.manifest import IndexManifest, ShardFile, checksum
from grace_retrieval.indexing.shards import read_vectors
from grace_retrieval.indexing.workspace import IndexFolder
from grace_retrieval.rationale import RationaleMode
from grace_retrieval.vector_identity import VectorIdentity
from grace_retrieval.version import __version__

__all__ = ["FaissOptions", "check_faiss", "commit"]


@dataclass(frozen=True, kw_only=True)
class FaissOptions:
    """How the FAISS index is chosen.

    Attributes:
        factory: Factory string; None lets `choose_index` choose.
        memory_bytes: Most memory of the index; None sets no limit.
    """

    factory: str | None = None
    memory_bytes: int | None = None


def check_faiss(options: FaissOptions, *, rows: int | None = None, dimension: int | None = None) -> None:
    """Find out what FAISS will not build, before hours go into vectors.

    Args:
        options: How the FAISS index is chosen.
        rows: Number of vectors; None if it is not known yet.
        dimension: Their dimensions; None if they are not known yet.

    Raises:
        MissingExtraError: If FAISS is not installed.
        InputError: If FAISS does not know the factory string, or no index fits into the memory.
    """
    import_faiss()
    if options.factory is not None:
        check_factory(options.factory, rows=rows, dimension=dimension)
    elif rows is not None and dimension is not None:
        choose_index(rows, dimension, memory_bytes=options.memory_bytes)


def commit(
    workspace: IndexFolder,
    shards: Sequence[ShardFile],
    *,
    dimension: int,
    rationale: RationaleMode,
    embedder: Mapping[str, Any] | None,
    identity: VectorIdentity | None,
    options: FaissOptions,
    before: IndexManifest | None,
    columns: Mapping[str, Any] | None = None,
) -> IndexManifest:
    """Make shards the index. Readers see the old index until the manifest is replaced, and then the new one.

    Args:
        workspace: Where the finished shards are.
        shards: All shards of the index, in the order of their rows.
        dimension: Dimensions of a vector.
        rationale: Whether vectors are made with rationales.
        embedder: How the embedder is loaded.
        identity: What the vectors are made with.
        options: How the FAISS index is chosen.
        before: The index that is replaced.
        columns: Which columns of the inputs the documents came from; None is as it was.

    Returns:
        The new manifest.

    Raises:
        InputError: If FAISS cannot build what was asked for.
        OSError: If a file cannot be written; the old index is as it was.
    """
    generation = before.generation + 1 if before else 1
    rows = sum(shard.rows for shard in shards)
    choice = choose_index(rows, dimension, memory_bytes=options.memory_bytes, factory=options.factory)

    base = _base(workspace, shards, choice, before)
    new = shards[len(before.shards) :] if before is not None and base is not None else shards

    def batches() -> Iterator[npt.NDArray[np.float32]]:
        for shard in new:
            for _, vectors in read_vectors(workspace.find(shard.name)):
                yield vectors

    name = "index.faiss" if generation == 1 else f"index-{generation}.faiss"
    built = build_faiss(workspace.folder / name, batches, rows=rows, dimension=dimension, choice=choice, base=base)
    faiss = replace(built, asked_factory=options.factory, memory_bytes=options.memory_bytes)
    workspace.move_in(shards)
    manifest = IndexManifest(
        generation=generation,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        package=__version__,
        rows=rows,
        dimension=dimension,
        rationale=rationale,
        embedder=embedder,
        identity=identity,
        shards=tuple(shards),
        faiss=faiss,
        columns=columns or (before.columns if before else None),
        model_path=before.model_path if before and before.embedder == embedder else None,
    )
    manifest.write(workspace.folder)
    workspace.tidy(manifest)
    return manifest


def _base(
    workspace: IndexFolder, shards: Sequence[ShardFile], choice: IndexChoice, before: IndexManifest | None
) -> Path | None:
    """The FAISS file that new vectors are added to: that of an index of the same kind which only grows."""
    # Flat is written anew as fast as it is copied; a damaged file must not be carried on.
    if before is None or choice.factory == "Flat" or tuple(shards[: len(before.shards)]) != before.shards:
        return None
    path = workspace.folder / before.faiss.name
    same = (before.faiss.factory, before.faiss.metric) == (choice.factory, choice.metric)
    return path if same and path.exists() and checksum(path) == before.faiss.sha256 else None
