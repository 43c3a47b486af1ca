"""Shards: parquet files of documents with their rationales and vectors, written whole or not at all."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from grace_retrieval.atomic import replacing
from grace_retrieval.corpus.document import Document
from grace_retrieval.errors import IndexCorruptedError
from grace_retrieval.indexing.manifest import ShardFile, checksum

__all__ = [
    "Written",
    "as_matrix",
    "describe_shard",
    "read_vectors",
    "readable",
    "shard_schema",
    "shard_table",
    "write_shard",
]

ROW_GROUP = 256
"""Rows that are read together when one of them is looked up."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What an embedder made of one document beside its vector.

    Attributes:
        rationale: The rationale; None without rationales.
        rationale_ids: Its tokens.
        truncated: Whether it was cut off: by the token budget, or because it went in circles.
        text_truncated: Whether the text was longer than the model takes.
    """

    rationale: str | None = None
    rationale_ids: tuple[int, ...] | None = None
    truncated: bool = False
    text_truncated: bool = False


def shard_schema(dimension: int) -> pa.Schema:
    """Columns of a shard.

    Args:
        dimension: Dimensions of a vector.
    """
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("title", pa.string()),
            pa.field("metadata", pa.string()),
            pa.field("rationale", pa.string()),
            pa.field("rationale_ids", pa.list_(pa.int32())),
            pa.field("truncated", pa.bool_(), nullable=False),
            pa.field("text_truncated", pa.bool_(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dimension), nullable=False),
        ]
    )


def shard_table(
    documents: Sequence[Document], written: Sequence[Written], vectors: npt.NDArray[np.float32]
) -> pa.Table:
    """The rows of a shard.

    Args:
        documents: Documents.
        written: What the embedder made of them.
        vectors: Their vectors. Shape: (documents, dim), float32.
    """
    dimension = vectors.shape[1]
    columns = [
        [document.id for document in documents],
        [document.text for document in documents],
        [document.title for document in documents],
        [json.dumps(document.metadata, ensure_ascii=False) if document.metadata else None for document in documents],
        [row.rationale for row in written],
        [row.rationale_ids for row in written],
        [row.truncated for row in written],
        [row.text_truncated for row in written],
    ]
    schema = shard_schema(dimension)
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    arrays = [pa.array(column, type_) for column, type_ in zip(columns, schema.types, strict=False)]
    return pa.table([*arrays, pa.FixedSizeListArray.from_arrays(flat, dimension)], schema=schema)


def write_shard(path: Path, table: pa.Table) -> ShardFile:
    """Write a shard and describe it. The same rows give the same bytes.

    Args:
        path: The file.
        table: Its rows.

    Raises:
        OSError: If it cannot be written.
    """
    compression = {name: "none" if name == "vector" else "zstd" for name in table.column_names}
    # Parquet names the values of a list by their path.
    compression |= {"rationale_ids.list.element": "zstd", "vector.list.element": "none"}
    # A name of its own, because a worker that was given up may still be writing the same shard.
    own = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    with replacing(path, temporary=own) as temporary:
        pq.write_table(table, temporary, row_group_size=ROW_GROUP, compression=compression, use_dictionary=False)
    return describe_shard(path)


def describe_shard(path: Path) -> ShardFile:
    """Describe a shard that is there.

    Args:
        path: The file.

    Raises:
        IndexCorruptedError: If it cannot be read.
    """
    with readable(path):
        table = pq.read_table(path, columns=["id", "truncated", "text_truncated"], partitioning=None)
        blank: list[int] = []
        for start, vectors in read_vectors(path):
            blank += (np.flatnonzero(~vectors.any(axis=1)) + start).tolist()
        return ShardFile(
            name=path.name,
            rows=table.num_rows,
            bytes=path.stat().st_size,
            sha256=checksum(path),
            blank=tuple(blank),
            truncated=sum(table["truncated"].to_pylist()),
            text_truncated=sum(table["text_truncated"].to_pylist()),
        )


def read_vectors(path: Path, rows: int = 4096) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Stream the vectors of a shard.

    Args:
        path: The file.
        rows: Most rows at once.

    Yields:
        Place of the first row, and vectors. Shape: (rows, dim), float32.

    Raises:
        IndexCorruptedError: If the file cannot be read.
    """
    with readable(path), pq.ParquetFile(path) as file:
        start = 0
        for batch in file.iter_batches(batch_size=rows, columns=["vector"]):
            yield start, as_matrix(batch.column(0))
            start += len(batch)


def as_matrix(column: pa.FixedSizeListArray) -> npt.NDArray[np.float32]:
    """A column of vectors as a matrix, without a copy where there are no gaps. Shape: (rows, dim), float32."""
    flat: npt.NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size).astype(np.float32, copy=False)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what goes wrong while a shard is read into an error that names the file and the mend.

    Args:
        path: The shard.

    Raises:
        IndexCorruptedError: If the block finds the file missing or damaged.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise IndexCorruptedError(
            f"{path} is missing. If the index was changed since it was opened, open it again; otherwise copy the file "
            "from a backup, or build the index again: the rationales are still in the cache."
        ) from error
    except (pa.ArrowException, OSError, KeyError) as error:
        raise IndexCorruptedError(
            f"{path} is damaged ({' '.join(str(error).split())[:200]}). Copy it again from a backup, or build the "
            "index again: the rationales are still in the cache."
        ) from error
