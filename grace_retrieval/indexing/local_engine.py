"""The local engine: shard after shard, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from grace_retrieval.indexing.encoders import Encoder
from grace_retrieval.indexing.manifest import ShardFile
from grace_retrieval.indexing.plan import ShardTask, read_documents
from grace_retrieval.indexing.shards import shard_table, write_shard
from grace_retrieval.indexing.workspace import Workspace

__all__ = ["encode_shard", "run_local"]


def encode_shard(task: ShardTask, workspace: Workspace, encoder: Encoder) -> ShardFile:
    """Make a shard.

    Args:
        task: Which one.
        workspace: Where it goes.
        encoder: Makes its rows.

    Returns:
        Description of its file, which is whole and on the disk.

    Raises:
        OSError: If it cannot be written.
    """
    documents = read_documents(task.input)
    written, vectors = encoder.encode(documents)
    return write_shard(workspace.build / task.name, shard_table(documents, written, vectors))


def run_local(tasks: Sequence[ShardTask], workspace: Workspace, encoder: Encoder) -> Iterator[ShardFile]:
    """Make shards.

    Args:
        tasks: Which ones.
        workspace: Where they go.
        encoder: Makes their rows.

    Yields:
        Each shard when it is finished.
    """
    for task in tasks:
        yield encode_shard(task, workspace, encoder)
