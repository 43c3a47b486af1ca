"""The plan of a build: which documents go into which shard. The same documents give the same shards, by name.

A shard's name holds a digest of its documents and of what their vectors are made with. So a finished shard of that
name is the shard, and whatever was changed since has another name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from grace_retrieval.atomic import replacing
from grace_retrieval.corpus.document import Document
from grace_retrieval.indexing.shards import as_matrix, readable

_COLUMNS = ["id", "text", "title", "metadata"]

__all__ = ["ShardTask", "plan_shards", "read_documents"]


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """A shard to be made.

    Attributes:
        name: File name of the shard.
        rows: Number of documents.
        input: File of the documents.
    """

    name: str
    rows: int
    input: Path


def plan_shards(
    documents: Iterable[Document], folder: Path, *, shard_rows: int, first: int, salt: str
) -> Iterator[ShardTask]:
    """Cut documents into shards and store each shard's documents, until it is made.

    Args:
        documents: The documents.
        folder: Where their files go.
        shard_rows: Documents of a shard.
        first: Number of the first shard.
        salt: Digest of what vectors are made with.

    Yields:
        The shards, in the order of their rows.

    Raises:
        OSError: If a file cannot be written.
    """
    stream = iter(documents)
    number = first
    while rows := list(islice(stream, shard_rows)):
        path = folder / shard_name(number, rows, salt)
        if not path.exists():
            with replacing(path) as temporary:
                pq.write_table(_table(rows), temporary, compression="zstd", use_dictionary=False)
        yield ShardTask(name=path.name, rows=len(rows), input=path)
        number += 1


def shard_name(number: int, documents: Sequence[Document], salt: str) -> str:
    """Name of the shard of documents."""
    total = hashlib.sha256(salt.encode())
    for document in documents:
        about = [document.id, document.text, document.title, document.metadata]
        total.update(json.dumps(about).encode() + b"\n")
        if document.vector is not None:
            total.update(document.vector.tobytes())
    return f"{number:06d}-{total.hexdigest()[:16]}.parquet"


def read_documents(path: Path, *, vectors: bool = True) -> list[Document]:
    """The documents of a shard, planned or made.

    Args:
        path: Its file.
        vectors: Whether to read their vectors, if it has any.

    Raises:
        IndexCorruptedError: If it cannot be read.
    """
    with readable(path):
        there = [*_COLUMNS, "vector"] if vectors and "vector" in pq.read_schema(path).names else _COLUMNS
        table = pq.read_table(path, columns=there, partitioning=None)
    columns = [table[name].to_pylist() for name in _COLUMNS]
    given: Sequence[npt.NDArray[np.float32] | None] = [None] * table.num_rows
    if "vector" in table.column_names:
        given = [vector for chunk in table["vector"].chunks for vector in as_matrix(chunk)]
    return [
        Document(id=id_, text=text, title=title, metadata=json.loads(metadata) if metadata else {}, vector=vector)
        for id_, text, title, metadata, vector in zip(*columns, given, strict=True)
    ]


def _table(documents: Sequence[Document]) -> pa.Table:
    columns = {
        "id": [document.id for document in documents],
        "text": [document.text for document in documents],
        "title": pa.array([document.title for document in documents], pa.string()),
        "metadata": pa.array(
            [json.dumps(document.metadata) if document.metadata else None for document in documents], pa.string()
        ),
    }
    vectors = [document.vector for document in documents if document.vector is not None]
    if vectors:
        matrix = np.stack(vectors)
        columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])
    return pa.table(columns)
