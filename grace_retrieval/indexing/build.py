"""Building an index: documents → shards with rationales and vectors → FAISS, going on where it was stopped."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from grace_retrieval.errors import InputError
from grace_retrieval.indexing.commit import FaissOptions, commit
from grace_retrieval.indexing.encoders import EmbedderEncoder, Encoder, GivenVectors, recording
from grace_retrieval.indexing.manifest import IndexManifest
from grace_retrieval.indexing.plan import ShardTask, plan_shards, read_documents
from grace_retrieval.indexing.shards import Document, shard_table, write_shard
from grace_retrieval.indexing.workspace import Workspace

if TYPE_CHECKING:
    from grace_retrieval.embedder import GraceEmbedder

__all__ = ["BuildOptions", "build_index"]


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What shapes an index.

    Args:
        shard_rows: Documents of a shard: no more are embedded again after a kill.
        rationale: Whether to write rationales; None is the model's setting.
        faiss: How the FAISS index is chosen.
    """

    shard_rows: int = 1024
    rationale: bool | None = None
    faiss: FaissOptions = field(default_factory=FaissOptions)


def build_index(
    documents: Iterable[Document],
    folder: str | os.PathLike[str],
    *,
    embedder: GraceEmbedder | None = None,
    options: BuildOptions | None = None,
) -> IndexManifest:
    """Build an index.

    Args:
        documents: The documents, in an order that stays the same.
        folder: Folder of the index; made if it is not there.
        embedder: Embeds the documents; None takes the vectors that they bring.
        options: What shapes the index.

    Returns:
        Manifest of the index.

    Raises:
        InputError: If there is an index already, or no document.
    """
    options = options or BuildOptions()
    workspace = Workspace(Path(folder))
    with workspace.opened() as before:
        if before is not None:
            raise InputError(f"{folder} holds an index already.")
        if embedder is None:
            return _build(documents, workspace, GivenVectors(), options)
        with recording(embedder) as cache:
            return _build(documents, workspace, EmbedderEncoder(embedder, cache, rationale=options.rationale), options)


def _build(
    documents: Iterable[Document], workspace: Workspace, encoder: Encoder, options: BuildOptions
) -> IndexManifest:
    salt = encoder.identity.digest() if encoder.identity else "given"
    tasks = list(plan_shards(documents, workspace.input, shard_rows=options.shard_rows, first=0, salt=salt))
    if not tasks:
        raise InputError("There are no documents.")
    finished = workspace.journal.read()
    for task in tasks:
        if task.name not in finished:
            finished[task.name] = _encode(task, workspace, encoder)
    shards = [finished[task.name] for task in tasks]
    return commit(
        workspace,
        shards,
        dimension=_dimension(workspace, shards[0].name),
        rationale=encoder.rationale,
        embedder=encoder.settings,
        identity=encoder.identity,
        options=options.faiss,
        before=None,
    )


def _encode(task: ShardTask, workspace: Workspace, encoder: Encoder):
    documents = read_documents(task.input)
    written, vectors = encoder.encode(documents)
    shard = write_shard(workspace.build / task.name, shard_table(documents, written, vectors))
    workspace.journal.append(shard)
    return shard


def _dimension(workspace: Workspace, name: str) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_schema(workspace.find(name)).field("vector").type.list_size)
