"""Files of vectors: a job whose shards are merged into one parquet or npy file, as `grace embed` writes it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from grace_retrieval.advice import advise
from grace_retrieval.atomic import replacing
from grace_retrieval.corpus.document import Document, join_title
from grace_retrieval.corpus.files import TextSource
from grace_retrieval.errors import InputError
from grace_retrieval.indexing.encoders import EmbedderEncoder
from grace_retrieval.indexing.jobs import JobProgress, ShardJob
from grace_retrieval.indexing.manifest import ShardFile
from grace_retrieval.indexing.origin import write_origin
from grace_retrieval.indexing.runners import Runner, run_local
from grace_retrieval.indexing.shards import read_vectors, readable
from grace_retrieval.indexing.workspace import Workspace

__all__ = ["EmbedOptions", "EmbedSummary", "check_unfinished", "embed_to_file", "vector_workspace"]


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """What shapes a file of vectors.

    Args:
        batch: Rows of a shard: no more are embedded again after a kill.
        keep_text: Whether the texts are a column.
        overwrite: Whether the file is replaced, and unfinished work of another run discarded.
    """

    batch: int = 1024
    keep_text: bool = True
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class EmbedSummary:
    """What came of it.

    Attributes:
        rows: Rows of the file.
        dim: Dimensions of a vector.
        resumed: Rows that an earlier run had finished.
        generated: Distinct texts that the model was run for.
        from_cache: Distinct texts whose rationale and vector were in the cache.
        shortened: Rows whose text was longer than the model takes.
        cut: Rows whose rationale was cut off before its end.
        fingerprint: Digest of the embedder's fingerprint, in hexadecimal.
    """

    rows: int
    dim: int
    resumed: int = 0
    generated: int = 0
    from_cache: int = 0
    shortened: int = 0
    cut: int = 0
    fingerprint: str


def embed_to_file(
    documents: Iterable[Document],
    output: Path,
    encoder: EmbedderEncoder,
    *,
    options: EmbedOptions | None = None,
    source: TextSource | None = None,
    runner: Runner = run_local,
    progress: JobProgress | None = None,
) -> EmbedSummary:
    """Embed documents into a file, in their order. Killed and called again with the same arguments, it goes on.

    Args:
        documents: The documents.
        output: A .parquet file (id, text, rationale, truncated, vector) or an .npy file (vectors), beside which
            OUT.npy.json says what they were made with.
        encoder: The model, and the role of the texts.
        options: What shapes the file.
        source: Where the documents were read; lets a message say what differs from the run that was stopped.
        runner: Runs the encoder over the shards.
        progress: Told how far it is.

    Returns:
        What was done.

    Raises:
        InputError: If a document is bad, unfinished work there is of another run, or the file cannot be written.
    """
    options, identity = options or EmbedOptions(), encoder.embedder.vector_identity(encoder.rationale)
    fingerprint = identity.query if encoder.role == "query" else identity.document
    workspace = vector_workspace(output)
    shaped_by = {"role": encoder.role, "rationale": encoder.rationale, "text": options.keep_text}
    job = ShardJob(
        workspace=workspace,
        encoder=encoder,
        shard_rows=options.batch,
        salt=f"{identity.digest()} {encoder.role}",
        options={**shaped_by, "batch": options.batch, **(_described(source) if source else {})},
        source=source.name if source else "the input",
        overwrite=options.overwrite,
        runner=runner,
        progress=progress,
    )
    with workspace.working():
        check_unfinished(output, overwrite=options.overwrite)
        for path in _cut_before(workspace):
            path.unlink()
        tasks = job.plan(documents)
        job.claim(tasks)
        # They are read in a moment anyway: a file that a crash of the machine spoilt is made again.
        shards, resumed = job.make(tasks, check=True)
        described = json.dumps({"fingerprint": fingerprint.describe()}, sort_keys=True)
        schema = _schema(identity.dimension, options, {"grace": described})
        with replacing(output, temporary=workspace.build / "merged.tmp") as path:
            merge = _merge_array if output.suffix.lower() == ".npy" else _merge_table
            merge(path, shards, workspace, schema)
        if output.suffix.lower() == ".npy":
            write_origin(output, fingerprint)
        workspace.discard()
    return EmbedSummary(
        rows=sum(shard.rows for shard in shards),
        dim=identity.dimension,
        resumed=resumed,
        generated=encoder.counts["generated"],
        from_cache=encoder.counts["found"],
        shortened=sum(shard.text_truncated for shard in shards),
        cut=sum(shard.truncated for shard in shards),
        fingerprint=fingerprint.digest().hex(),
    )


def vector_workspace(output: Path) -> Workspace:
    """Where the shards of a file are made: OUT.parts beside it.

    Args:
        output: The file.
    """
    return Workspace(output.with_name(f"{output.name}.parts"), target=str(output))


def check_unfinished(output: Path, *, overwrite: bool) -> None:
    """Find out whether work can begin, before a model is loaded.

    Args:
        output: The file.
        overwrite: Whether unfinished work of another run is to be discarded.

    Raises:
        InputError: If the folder of unfinished work cannot be written, or holds parts that an earlier version cut.
    """
    workspace = vector_workspace(output)
    workspace.check()
    if not overwrite and any(path.suffix == ".parquet" for path in _cut_before(workspace)):
        raise InputError(
            f"{workspace.build} holds unfinished work that another version of grace-retrieval made; its rationales are "
            "still in the cache. "
            + advise("finish it with that version", ("discard it ({})", "--overwrite", "overwrite=True"))
        )


def _cut_before(workspace: Workspace) -> list[Path]:
    """Files of version 0.1, whose parts hold other columns than shards."""
    return [path for pattern in ("part-*.parquet", "manifest.json") for path in workspace.build.glob(pattern)]


def _schema(dimension: int, options: EmbedOptions, about: dict[str, str]) -> pa.Schema:
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("rationale", pa.string()),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("vector", pa.list_(pa.float32(), dimension), nullable=False),
    ]
    return pa.schema([field for field in fields if field.name != "text" or options.keep_text], metadata=about)


def _merge_table(path: Path, shards: Sequence[ShardFile], workspace: Workspace, schema: pa.Schema) -> None:
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        for shard in shards:
            columns = [*schema.names, *(["title"] if "text" in schema.names else [])]
            with readable(workspace.find(shard.name)):
                table = pq.read_table(workspace.find(shard.name), columns=columns, partitioning=None)
            if "title" in columns:
                titles, texts = (table[name].to_pylist() for name in ("title", "text"))
                shown = pa.array(map(join_title, titles, texts), pa.string())
                table = table.set_column(table.schema.get_field_index("text"), "text", shown)
            writer.write_table(table.select(schema.names).combine_chunks().cast(schema))


def _merge_array(path: Path, shards: Sequence[ShardFile], workspace: Workspace, schema: pa.Schema) -> None:
    shape = (sum(shard.rows for shard in shards), schema.field("vector").type.list_size)
    with open(path, "wb") as stream:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for shard in shards:
            for _, vectors in read_vectors(workspace.find(shard.name)):
                stream.write(vectors.astype("<f4", copy=False).tobytes())


def _described(source: TextSource) -> dict[str, Any]:
    return {
        "input bytes": source.size,
        "format": source.format,
        "text-column": source.text_column,
        "id-column": source.id_column,
        "title-column": source.title_column,
    }
