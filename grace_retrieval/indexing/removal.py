"""Removing rows: the shards that hold them are written again without them, so that what is deleted is gone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from grace_retrieval.advice import advise
from grace_retrieval.errors import InputError
from grace_retrieval.indexing.commit import FaissOptions, commit
from grace_retrieval.indexing.manifest import IndexManifest, ShardFile
from grace_retrieval.indexing.shards import readable, write_shard
from grace_retrieval.indexing.workspace import IndexFolder

__all__ = ["delete_documents", "names_without", "shards_without"]


def delete_documents(
    folder: str | os.PathLike[str], ids: Iterable[str], *, missing: str = "error"
) -> tuple[IndexManifest, int]:
    """Delete documents from an index. Killed and called again, it does what is left to do.

    Args:
        folder: Folder of the index.
        ids: Ids of the documents.
        missing: "error" if an id is not in the index, or "skip" it.

    Returns:
        The new manifest, and the number of documents that were deleted.

    Raises:
        InputError: If there is no index, or an id is not in it.
    """
    if missing not in ("error", "skip"):
        raise InputError(f"missing={missing!r}: give 'error' or 'skip'.")
    wanted = set(ids)
    workspace = IndexFolder(Path(folder))
    if not workspace.folder.is_dir():
        IndexManifest.read(workspace.folder)
    with workspace.opened():
        before = IndexManifest.read(workspace.folder)
        rows, start, found = [], 0, set()
        for shard in before.shards:
            path = workspace.find(shard.name)
            with readable(path):
                names = pq.read_table(path, columns=["id"], partitioning=None)["id"].to_pylist()
            rows += [start + place for place, name in enumerate(names) if name in wanted]
            found |= wanted.intersection(names)
            start += len(names)
        if (lost := sorted(wanted - found)) and missing == "error":
            shown = ", ".join(map(repr, lost[:5])) + (", ..." if len(lost) > 5 else "")
            raise InputError(
                f"{len(lost):,} of {len(wanted):,} ids are not in {folder}: {shown}. Nothing was deleted. "
                + advise("leave them out", ("skip them ({})", "--skip-missing", "missing='skip'"))
            )
        workspace.refuse_others(names_without(before.shards, rows))
        if not rows:
            workspace.tidy(before)
            return before, 0
        after = commit(
            workspace,
            shards_without(workspace, before.shards, rows),
            dimension=before.dimension,
            rationale=before.rationale,
            embedder=before.embedder,
            identity=before.identity,
            options=FaissOptions(factory=before.faiss.asked_factory, memory_bytes=before.faiss.memory_bytes),
            before=before,
        )
        return after, len(rows)


def shards_without(workspace: IndexFolder, shards: Sequence[ShardFile], rows: Sequence[int]) -> list[ShardFile]:
    """Write shards again without some of their rows. Other shards stay as they are; empty ones are left out.

    Args:
        workspace: Where the shards are, and the new ones go.
        shards: The shards of an index.
        rows: Row numbers to leave out.

    Returns:
        The shards, in their order.

    Raises:
        OSError: If a shard cannot be written.
    """
    made = workspace.journal.read()
    kept = []
    for shard, places in _places(shards, rows):
        if not places:
            kept.append(shard)
        elif len(places) < shard.rows:
            name = _name(shard, places)
            kept.append(made.get(name) or _without(workspace, shard, places, name))
    return kept


def names_without(shards: Sequence[ShardFile], rows: Sequence[int]) -> set[str]:
    """Names of the shards that `shards_without` writes.

    Args:
        shards: The shards of an index.
        rows: Row numbers to leave out.
    """
    return {_name(shard, places) for shard, places in _places(shards, rows) if places}


def _places(shards: Sequence[ShardFile], rows: Sequence[int]) -> Iterator[tuple[ShardFile, list[int]]]:
    """The shards, and the places in them of rows that are to be left out."""
    gone = np.unique(np.asarray(rows, dtype=np.int64))
    starts = np.cumsum([0, *(shard.rows for shard in shards)])
    borders = np.searchsorted(gone, starts)
    for number, shard in enumerate(shards):
        yield shard, (gone[borders[number] : borders[number + 1]] - starts[number]).tolist()


def _name(shard: ShardFile, places: list[int]) -> str:
    digest = hashlib.sha256(f"{shard.name} without {places}".encode()).hexdigest()
    return f"{shard.name[:6]}-{digest[:16]}.parquet"


def _without(workspace: IndexFolder, shard: ShardFile, places: list[int], name: str) -> ShardFile:
    path = workspace.find(shard.name)
    with readable(path):
        table = pq.read_table(path, partitioning=None)
    left = np.setdiff1d(np.arange(shard.rows), places)
    new = write_shard(workspace.build / name, table.take(pa.array(left)).combine_chunks())
    workspace.journal.append(new)
    return new
