"""Building an index: documents → shards with rationales and vectors → FAISS, going on where it was stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import pyarrow.parquet as pq

from grace_retrieval.corpus.document import Document
from grace_retrieval.corpus.duplicates import DuplicateCounts, OnDuplicateId, OnDuplicateText, SeenDocuments
from grace_retrieval.errors import InputError, ModelMismatchError
from grace_retrieval.indexing.commit import FaissOptions, commit
from grace_retrieval.indexing.encoders import EmbedderEncoder, Encoder, GivenVectors, with_unit_vectors
from grace_retrieval.indexing.local_engine import run_local
from grace_retrieval.indexing.manifest import IndexManifest, ShardFile, checksum
from grace_retrieval.indexing.plan import ShardTask, plan_shards, read_documents
from grace_retrieval.indexing.removal import shards_without
from grace_retrieval.indexing.workspace import Workspace

if TYPE_CHECKING:
    from grace_retrieval.embedder import GraceEmbedder

__all__ = ["BuildOptions", "BuildProgress", "BuildSummary", "Engine", "Mode", "build_index", "build_with"]

Mode = Literal["new", "add", "update", "overwrite"]

Engine = Callable[[Sequence[ShardTask], Workspace, Encoder], Iterator[ShardFile]]
"""Makes shards, in any order; each is whole and on the disk when it is given back."""


class BuildProgress(Protocol):
    """What is told how far a build is; `grace_retrieval.cli.progress.TextProgress` is one."""

    def expect(self, total: int) -> None:
        """Set the number of documents."""

    def resume(self, done: int) -> None:
        """Set how many were done by an earlier run."""

    def advance(self, count: int = 1) -> None:
        """Count documents as done."""

    def reach(self, done: int) -> None:
        """Set how many are done."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What shapes an index.

    Args:
        shard_rows: Documents of a shard: no more are embedded again after a kill.
        rationale: Whether to write rationales; None is the model's setting.
        on_duplicate_id: What to do about an id that comes again with another content: "error", or "skip" the later.
        on_duplicate_text: "keep" documents of other ids with the same text, or "skip" the later.
        faiss: How the FAISS index is chosen.

    Raises:
        InputError: If an option is out of range.
    """

    shard_rows: int = 1024
    rationale: bool | None = None
    on_duplicate_id: OnDuplicateId = "error"
    on_duplicate_text: OnDuplicateText = "keep"
    faiss: FaissOptions = field(default_factory=FaissOptions)

    def __post_init__(self) -> None:
        """Check the ranges."""
        if type(self.shard_rows) is not int or self.shard_rows < 1:
            raise InputError(f"shard_rows={self.shard_rows!r}: give a positive whole number.")
        for name, allowed in (("on_duplicate_id", OnDuplicateId), ("on_duplicate_text", OnDuplicateText)):
            if getattr(self, name) not in get_args(allowed):
                raise InputError(f"{name}={getattr(self, name)!r}: give one of {', '.join(get_args(allowed))}.")


@dataclass(frozen=True, kw_only=True)
class BuildSummary:
    """What a build did.

    Attributes:
        manifest: The index.
        added: Documents that came in.
        resumed: Those of them whose shards an earlier run had finished.
        duplicates: What was found twice.
    """

    manifest: IndexManifest
    added: int
    resumed: int
    duplicates: DuplicateCounts


def build_index(
    documents: Iterable[Document],
    folder: str | os.PathLike[str],
    *,
    embedder: GraceEmbedder | None = None,
    options: BuildOptions | None = None,
    mode: Mode = "new",
    progress: BuildProgress | None = None,
) -> BuildSummary:
    """Build an index, or change one. Killed and called again with the same arguments, it goes on where it was.

    Args:
        documents: The documents, such as `Corpus(["corpus.jsonl"]).documents()`.
        folder: Folder of the index; made if it is not there.
        embedder: Embeds the documents; None takes the vectors that they bring.
        options: What shapes the index.
        mode: "new"; "add" to an index; "update" it, where documents replace those of their ids; or "overwrite" it.
        progress: Told how far the build is.

    Returns:
        What was done.

    Raises:
        InputError: If there is no document, a document is bad, or the folder cannot be written.
        ModelMismatchError: If the embedder is not the one of the index that is added to.

    Example:
        >>> embedder = GraceEmbedder("grace-nano", cache=None)  # doctest: +SKIP
        >>> build_index(Corpus(["corpus.jsonl"]).documents(), "index", embedder=embedder)  # doctest: +SKIP
    """
    options = options or BuildOptions()
    encoder: Encoder = GivenVectors()
    if embedder is not None:
        on_row = None if progress is None else progress.advance
        encoder = EmbedderEncoder(embedder, rationale=options.rationale, on_row=on_row)
    return build_with(encoder, documents, folder, options=options, mode=mode, progress=progress)


def build_with(
    encoder: Encoder,
    documents: Iterable[Document],
    folder: str | os.PathLike[str],
    *,
    options: BuildOptions,
    mode: Mode = "new",
    engine: Engine = run_local,
    progress: BuildProgress | None = None,
) -> BuildSummary:
    """Build an index with another encoder or engine; see `build_index`.

    Args:
        encoder: Makes the rows of a shard.
        documents: The documents.
        folder: Folder of the index.
        options: What shapes the index.
        mode: As in `build_index`.
        engine: Runs the encoder over the shards.
        progress: Told how far the build is.

    Returns:
        What was done.
    """
    if mode not in get_args(Mode):
        raise InputError(f"mode={mode!r}: give one of {', '.join(get_args(Mode))}.")
    workspace = Workspace(Path(folder))
    with workspace.opened() as there, workspace.writing():
        base = _base(there, mode, folder)
        if base is not None:
            _check_encoder(encoder, base, folder)
        seen = SeenDocuments(
            on_duplicate_id=options.on_duplicate_id,
            on_duplicate_text=options.on_duplicate_text,
            update=mode == "update",
            vectors=not encoder.embeds,
        )
        tasks = _plan(documents, workspace, encoder, options, base, seen)
        kept = () if base is None else shards_without(workspace, base.shards, seen.counts.replaced)
        if mode == "new" and there is not None and [t.name for t in tasks] != [s.name for s in there.shards]:
            workspace.discard()
            raise InputError(
                f"{folder} holds an index of other documents, or of the same made in another way. Add to it (--add), "
                "update it (--update), replace it (--overwrite), or give another folder."
            )
        finished, resumed = _finished(tasks, workspace, there, check=mode == "overwrite")
        todo = [task for task in tasks if task.name not in finished]
        if progress is not None:
            progress.expect(sum(task.rows for task in tasks))
            progress.resume(resumed)
        done = resumed
        for shard in engine(todo, workspace, encoder):
            workspace.journal.append(shard)
            finished[shard.name] = shard
            done += shard.rows
            if progress is not None:
                progress.reach(done)
        shards = [*kept, *(finished[task.name] for task in tasks)]
        faiss = _faiss_options(options, base)
        if there is not None and mode != "overwrite" and not todo and _same(there, shards, faiss):
            # Nothing has changed, or a kill came between the manifest and the end.
            manifest = there
            workspace.tidy(there)
        else:
            manifest = commit(
                workspace,
                shards,
                dimension=base.dimension if base else _dimension(workspace, shards[0].name),
                rationale=encoder.rationale,
                embedder=encoder.settings,
                identity=encoder.identity,
                options=faiss,
                before=there,
            )
        return BuildSummary(
            manifest=manifest, added=sum(task.rows for task in tasks), resumed=resumed, duplicates=seen.counts
        )


def _base(there: IndexManifest | None, mode: Mode, folder: object) -> IndexManifest | None:
    """The index that documents are added to."""
    if mode in ("new", "overwrite"):
        return None
    if there is None:
        raise InputError(f"{folder} holds no index to {mode}: build it first, without --{mode}.")
    return there


def _check_encoder(encoder: Encoder, base: IndexManifest, folder: object) -> None:
    if encoder.identity is not None and base.identity is not None:
        encoder.identity.require(base.identity, str(folder))
    elif (encoder.identity is None) != (base.identity is None):
        theirs = "by a model that is not known" if base.identity is None else f"by {base.identity.model!r}"
        ours = "by a model that is not known" if encoder.identity is None else f"by {encoder.identity.model!r}"
        raise ModelMismatchError(
            f"{folder} holds vectors that were made {theirs}, and the new ones are made {ours}. Add what was made the "
            "same way, or build another index."
        )


def _plan(
    documents: Iterable[Document],
    workspace: Workspace,
    encoder: Encoder,
    options: BuildOptions,
    base: IndexManifest | None,
    seen: SeenDocuments,
) -> list[ShardTask]:
    """Cut what is new into shards."""
    first = 0
    with seen.opened(workspace.build / "seen.sqlite"):
        if base is not None:
            first = 1 + max((int(shard.name[:6]) for shard in base.shards), default=-1)
            files = (workspace.find(shard.name) for shard in base.shards)
            seen.know(document for file in files for document in read_documents(file, vectors=not encoder.embeds))
        salt = encoder.identity.digest() if encoder.identity else "given"
        stream = seen.new(documents if encoder.embeds else with_unit_vectors(documents))
        tasks = list(plan_shards(stream, workspace.input, shard_rows=options.shard_rows, first=first, salt=salt))
    if not tasks and base is None:
        workspace.discard()
        raise InputError("The input holds no documents: nothing to index.")
    return tasks


def _finished(
    tasks: Sequence[ShardTask], workspace: Workspace, there: IndexManifest | None, *, check: bool
) -> tuple[dict[str, ShardFile], int]:
    """Shards that are made already, and their number of rows; with their checksums checked, if wanted."""
    known = {shard.name: shard for shard in (there.shards if there else ())} | workspace.journal.read()
    finished = {}
    for task in tasks:
        shard = known.get(task.name)
        path = workspace.find(task.name)
        if shard is None or not path.exists() or path.stat().st_size != shard.bytes:
            continue
        if not check or checksum(path) == shard.sha256:
            finished[task.name] = shard
    return finished, sum(shard.rows for shard in finished.values())


def _same(there: IndexManifest, shards: Sequence[ShardFile], faiss: FaissOptions) -> bool:
    """Whether an index consists of these shards, with the FAISS index that is asked for."""
    asked = FaissOptions(factory=there.faiss.asked_factory, memory_bytes=there.faiss.memory_bytes)
    return [shard.name for shard in shards] == [shard.name for shard in there.shards] and asked == faiss


def _dimension(workspace: Workspace, name: str) -> int:
    return int(pq.read_schema(workspace.find(name)).field("vector").type.list_size)


def _faiss_options(options: BuildOptions, base: IndexManifest | None) -> FaissOptions:
    """What was asked for now, or else when the index was built."""
    if base is None or options.faiss != FaissOptions():
        return options.faiss
    return FaissOptions(factory=base.faiss.asked_factory, memory_bytes=base.faiss.memory_bytes)
