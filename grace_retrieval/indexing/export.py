"""Copies of an index for other stores: a plain FAISS file with ids, LanceDB, Qdrant."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from grace_retrieval.atomic import replacing
from grace_retrieval.errors import InputError, MissingExtraError
from grace_retrieval.indexing.shards import as_matrix, readable, shard_schema

if TYPE_CHECKING:
    from grace_retrieval.indexing.index import GraceIndex

__all__ = ["export_faiss", "export_lancedb", "export_qdrant"]

_BATCH = 1024


def export_faiss(index: GraceIndex, folder: Path) -> int:
    """Copy the FAISS index, and the ids of its vectors in their order.

    Args:
        index: An index.
        folder: New folder: index.faiss, and ids.json (a list of strings).

    Returns:
        Number of vectors.

    Raises:
        InputError: If the folder is not empty, or cannot be written.
    """
    _make(folder)
    with replacing(folder / "index.faiss") as path:
        shutil.copyfile(index.folder / index.manifest.faiss.name, path)
    with replacing(folder / "ids.json") as path, open(path, "w", encoding="utf-8") as stream:
        separator = "["
        for ids in index.rows.column("id"):
            for name in ids:
                stream.write(f"{separator}{json.dumps(name, ensure_ascii=False)}")
                separator = ",\n"
        stream.write("]\n" if separator != "[" else "[]\n")
    return len(index)


def export_lancedb(index: GraceIndex, folder: Path, *, table: str = "documents") -> int:
    """Copy all columns into a LanceDB table.

    Args:
        index: An index.
        folder: New folder of the database.
        table: Name of the table.

    Returns:
        Number of rows.

    Raises:
        MissingExtraError: If lancedb is not installed.
        InputError: If the folder is not empty.
    """
    lancedb = _import("lancedb", "lancedb")
    _make(folder)
    batches = (batch for _, batch in _batches(index))
    database = lancedb.connect(folder)
    made = database.create_table(table, data=batches, schema=shard_schema(index.dimension))
    return int(made.count_rows())


def export_qdrant(index: GraceIndex, folder: Path, *, collection: str = "documents") -> int:
    """Copy vectors, ids, texts, titles, metadata and rationales into a local Qdrant collection.

    A point's id is its row number, and `id` in its payload the document's. Blank documents are left out: Qdrant's
    cosine cannot hold zeros.

    Args:
        index: An index.
        folder: New folder of the database, in Qdrant's local format.
        collection: Name of the collection.

    Returns:
        Number of points.

    Raises:
        MissingExtraError: If qdrant-client is not installed.
        InputError: If the folder is not empty.
    """
    client_module = _import("qdrant_client", "qdrant")
    models = _import("qdrant_client.models", "qdrant")
    _make(folder)
    client = client_module.QdrantClient(path=str(folder))
    try:
        client.create_collection(
            collection,
            vectors_config=models.VectorParams(size=index.dimension, distance=models.Distance.COSINE),
        )
        for start, batch in _batches(index):
            vectors = as_matrix(batch.column("vector"))
            rows = batch.select(["id", "text", "title", "metadata", "rationale"]).to_pylist()
            points = [
                models.PointStruct(
                    id=start + place,
                    vector=vector.tolist(),
                    payload={**row, "metadata": json.loads(row["metadata"] or "{}")},
                )
                for place, (row, vector) in enumerate(zip(rows, vectors, strict=True))
                if vector.any()
            ]
            if points:
                client.upsert(collection, points)
        return int(client.count(collection).count)
    finally:
        client.close()


def _batches(index: GraceIndex) -> Iterator[tuple[int, pa.RecordBatch]]:
    """All rows, with the number of the first of each batch."""
    start = 0
    for shard in index.manifest.shards:
        path = index.folder / "shards" / shard.name
        with readable(path), pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                yield start, batch
                start += len(batch)


def _make(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty: give a new folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Cannot make {folder}: {error.strerror}.") from error


def _import(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise MissingExtraError(module.partition(".")[0], extra, f"Exporting to {extra}") from error
