"""Verifying an index: every checksum and count; and mending what can be made from the rest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from grace_retrieval.errors import IndexCorruptedError
from grace_retrieval.indexing.commit import FaissOptions, commit
from grace_retrieval.indexing.faiss_store import open_faiss
from grace_retrieval.indexing.manifest import IndexManifest, ShardFile, checksum
from grace_retrieval.indexing.shards import readable, shard_schema
from grace_retrieval.indexing.workspace import IndexFolder

__all__ = ["IndexReport", "mend_index", "verify_index"]


@dataclass(frozen=True, kw_only=True)
class IndexReport:
    """Result of reading a whole index.

    Attributes:
        rows: Rows that were read.
        problems: What is wrong, one line each, with the file and the mend.
        notes: What is no problem but worth knowing, such as files that do not belong to the index.
    """

    rows: int
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify_index(folder: str | os.PathLike[str]) -> IndexReport:
    """Read a whole index and compare every checksum and count.

    Args:
        folder: Folder of the index.

    Returns:
        What was found.

    Raises:
        InputError: If there is no index, or a newer version of grace-retrieval wrote it.
        IndexCorruptedError: If the manifest cannot be read.
    """
    path = Path(folder)
    manifest = IndexManifest.read(path)
    problems, rows = [], 0
    for shard in manifest.shards:
        problem = _shard_problem(path / "shards" / shard.name, shard, manifest.dimension)
        problems += [problem] if problem else []
        rows += 0 if problem else shard.rows
    if problem := _faiss_problem(path, manifest):
        problems.append(problem)
    return IndexReport(rows=rows, problems=tuple(problems), notes=tuple(_notes(path, manifest)))


def mend_index(folder: str | os.PathLike[str], options: FaissOptions | None = None) -> IndexManifest:
    """Make the FAISS file again from the shards.

    Args:
        folder: Folder of the index.
        options: How the FAISS index is chosen; None is as it was.

    Returns:
        The new manifest.

    Raises:
        IndexCorruptedError: If a shard is damaged, which cannot be mended from the rest.
    """
    workspace = IndexFolder(Path(folder))
    IndexManifest.read(workspace.folder)
    with workspace.opened():
        before = IndexManifest.read(workspace.folder)
        workspace.refuse_others()
        for shard in before.shards:
            if problem := _shard_problem(workspace.shards / shard.name, shard, before.dimension):
                raise IndexCorruptedError(problem)
        return commit(
            workspace,
            before.shards,
            dimension=before.dimension,
            rationale=before.rationale,
            embedder=before.embedder,
            identity=before.identity,
            options=options or FaissOptions(factory=before.faiss.asked_factory, memory_bytes=before.faiss.memory_bytes),
            before=before,
        )


def _shard_problem(path: Path, shard: ShardFile, dimension: int) -> str | None:
    mend = (
        "Copy it again from a backup, or build the index again (grace index build INPUT --out "
        f"{path.parents[1]} --overwrite): whole shards are used again, and rationales come from the cache."
    )
    if not path.exists():
        return f"{path} is missing. {mend}"
    if (size := path.stat().st_size) != shard.bytes:
        return f"{path} has {size:,} bytes, and should have {shard.bytes:,}. {mend}"
    if checksum(path) != shard.sha256:
        return f"{path} has another checksum than when it was written: it is damaged. {mend}"
    try:
        with readable(path), pq.ParquetFile(path) as file:
            rows, schema = file.metadata.num_rows, file.schema_arrow
    except IndexCorruptedError as error:
        return str(error)
    if rows != shard.rows:
        return f"{path} has {rows:,} rows, and the manifest says {shard.rows:,}. {mend}"
    if not schema.equals(shard_schema(dimension)):
        return f"{path} has other columns than a shard of {dimension} dimensions. {mend}"
    return None


def _faiss_problem(folder: Path, manifest: IndexManifest) -> str | None:
    path = folder / manifest.faiss.name
    # Before FAISS opens it, because what is damaged may end the process.
    if path.exists() and path.stat().st_size == manifest.faiss.bytes and checksum(path) != manifest.faiss.sha256:
        return (
            f"{path} has another checksum than when it was written: it is damaged. Make it again from the shards: "
            f"grace index verify {folder} --mend"
        )
    try:
        open_faiss(folder, manifest.faiss, rows=manifest.rows)
    except IndexCorruptedError as error:
        return str(error)
    return None


def _notes(folder: Path, manifest: IndexManifest) -> Iterator[str]:
    if (folder / "build").is_dir():
        yield f"{folder / 'build'} holds unfinished work: the command that made it goes on from there."
    known = {shard.name for shard in manifest.shards}
    for path in sorted((folder / "shards").glob("*")):
        if path.name not in known:
            yield f"{path} does not belong to the index; the next change removes it."
