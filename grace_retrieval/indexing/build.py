"""Building an index: documents → shards with rationales and vectors → FAISS, going on where it was stopped."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow.parquet as pq

from grace_retrieval.advice import advise
from grace_retrieval.corpus.document import Document
from grace_retrieval.corpus.duplicates import DuplicateCounts, OnDuplicateId, OnDuplicateText, SeenDocuments
from grace_retrieval.errors import InputError, ModelMismatchError
from grace_retrieval.indexing.commit import FaissOptions, check_faiss, commit
from grace_retrieval.indexing.documents import as_documents
from grace_retrieval.indexing.encoders import EmbedderEncoder, Encoder, GivenVectors, with_unit_vectors
from grace_retrieval.indexing.jobs import JobProgress as BuildProgress
from grace_retrieval.indexing.jobs import ShardJob
from grace_retrieval.indexing.manifest import IndexManifest, ShardFile
from grace_retrieval.indexing.plan import ShardTask, read_documents
from grace_retrieval.indexing.removal import names_without, shards_without
from grace_retrieval.indexing.runners import Runner, run_local
from grace_retrieval.indexing.workspace import IndexFolder
from grace_retrieval.rationale import RationaleMode

if TYPE_CHECKING:
    from grace_retrieval.embedder import GraceEmbedder

__all__ = ["BuildOptions", "BuildProgress", "BuildSummary", "Mode", "build_index", "build_with"]

Mode = Literal["new", "add", "update", "overwrite"]


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
    rationale: RationaleMode | None = None
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
    documents: Iterable[Any],
    folder: str | os.PathLike[str],
    *,
    embedder: GraceEmbedder | str | os.PathLike[str] | None = None,
    options: BuildOptions | None = None,
    mode: Mode = "new",
    progress: BuildProgress | None = None,
) -> BuildSummary:
    """Build an index, or change one. Killed and called again with the same arguments, it goes on where it was.

    Args:
        documents: A Corpus, or an iterable of Documents, texts, mappings with `text`, or LangChain documents.
        folder: Folder of the index; made if it is not there.
        embedder: Embeds the documents: an embedder, or the name or folder of a model. None takes the vectors that they
            bring.
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
        >>> build_index(Corpus(["corpus.jsonl"]), "index", embedder=embedder)  # doctest: +SKIP
    """
    options = BuildOptions() if options is None else options
    if not isinstance(options, BuildOptions):
        raise InputError(f"options is {type(options).__name__}: give BuildOptions(shard_rows=..., ...).")
    if isinstance(embedder, (str, os.PathLike)):
        from grace_retrieval.embedder import GraceEmbedder

        embedder = GraceEmbedder(embedder)
    elif embedder is not None and not hasattr(embedder, "vector_identity"):
        raise InputError(
            f"embedder is {type(embedder).__name__}: give a GraceEmbedder, or the name or folder of a model."
        )
    encoder: Encoder = GivenVectors()
    if embedder is not None:
        encoder = EmbedderEncoder(embedder, rationale=options.rationale)
    return build_with(encoder, documents, folder, options=options, mode=mode, progress=progress)


def build_with(
    encoder: Encoder,
    documents: Iterable[Any],
    folder: str | os.PathLike[str],
    *,
    options: BuildOptions,
    mode: Mode = "new",
    runner: Runner = run_local,
    progress: BuildProgress | None = None,
    columns: Callable[[], Mapping[str, Any]] | None = None,
    engine: Runner | None = None,
) -> BuildSummary:
    """Build an index with another encoder or runner; see `build_index`.

    Args:
        encoder: Makes the rows of a shard.
        documents: As in `build_index`.
        folder: Folder of the index.
        options: What shapes the index.
        mode: As in `build_index`.
        runner: Runs the encoder over the shards.
        progress: Told how far the build is.
        columns: Says which columns the documents came from, once all are read (`Corpus.described`): what `index add`
            goes by.
        engine: Deprecated name of `runner`.

    Returns:
        What was done.
    """
    if mode not in get_args(Mode):
        raise InputError(f"mode={mode!r}: give one of {', '.join(get_args(Mode))}.")
    if engine is not None:
        warnings.warn("engine=... is now runner=...: an engine runs a model.", DeprecationWarning, stacklevel=2)
        runner = engine
    if not isinstance(folder, (str, os.PathLike)):
        raise InputError(f"folder is {type(folder).__name__}: give the folder of the index.")
    check_faiss(options.faiss)
    workspace = IndexFolder(Path(folder))
    with workspace.opened() as there:
        base = _base(there, mode, folder)
        if base is not None:
            _check_encoder(encoder, base, folder)
        seen = SeenDocuments(
            on_duplicate_id=options.on_duplicate_id,
            on_duplicate_text=options.on_duplicate_text,
            update=mode == "update",
            vectors=not encoder.embeds,
        )
        job = ShardJob(
            workspace=workspace,
            encoder=encoder,
            shard_rows=options.shard_rows,
            salt=encoder.identity.digest() if encoder.identity else "given",
            options={
                "shard-rows": options.shard_rows,
                "on-duplicate-id": options.on_duplicate_id,
                "on-duplicate-text": options.on_duplicate_text,
            },
            overwrite=mode == "overwrite",
            give_up=("discard what differs ({})", "--overwrite", "mode='overwrite'")
            if base is None
            else f"remove {workspace.build} to discard what differs",
            runner=runner,
            progress=progress,
        )
        tasks = _plan(as_documents(documents), job, workspace, base, seen)
        if mode == "new" and there is not None and [t.name for t in tasks] != [s.name for s in there.shards]:
            raise InputError(
                f"{folder} holds an index of other documents, or of the same made in another way. "
                + advise(
                    ("add to it ({})", "--add", "mode='add'"),
                    ("update it ({})", "--update", "mode='update'"),
                    ("replace it ({})", "--overwrite", "mode='overwrite'"),
                    "give another folder",
                )
            )
        before = () if base is None else base.shards
        job.claim(tasks, names_without(before, seen.counts.replaced))
        faiss = _faiss_options(options, base)
        rows = sum(shard.rows for shard in before) - len(seen.counts.replaced) + sum(task.rows for task in tasks)
        dimension = base.dimension if base else _dimension(tasks[0], encoder)
        if base is not None and tasks and (new := _dimension(tasks[0], encoder)) != dimension:
            raise ModelMismatchError(
                f"{folder} holds vectors of {dimension} dimensions, and the new ones have {new}. Add vectors of the "
                "same model, or build another index."
            )
        check_faiss(faiss, rows=rows, dimension=dimension)
        kept = shards_without(workspace, before, seen.counts.replaced)
        made, resumed = job.make(tasks, known=there.shards if there else (), check=mode == "overwrite")
        shards, added = [*kept, *made], sum(shard.rows for shard in made)
        if there is not None and mode != "overwrite" and resumed == added and _same(there, shards, faiss):
            # Nothing has changed, or a kill came between the manifest and the end.
            manifest = there
            workspace.tidy(there)
        else:
            manifest = commit(
                workspace,
                shards,
                dimension=dimension,
                rationale=encoder.rationale,
                embedder=encoder.settings,
                identity=encoder.identity,
                options=faiss,
                before=there,
                columns=columns() if columns is not None and base is None else None,
            )
        return BuildSummary(manifest=manifest, added=added, resumed=resumed, duplicates=seen.counts)


def __getattr__(name: str) -> Any:
    """Give `Runner` by the name that it had."""
    if name != "Engine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("Engine is now grace_retrieval.indexing.runners.Runner.", DeprecationWarning, stacklevel=2)
    return Runner


def _base(there: IndexManifest | None, mode: Mode, folder: object) -> IndexManifest | None:
    """The index that documents are added to."""
    if mode in ("new", "overwrite"):
        return None
    if there is None:
        raise InputError(f"{folder} holds no index to {mode}. Build one: grace index build INPUT --out {folder}")
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
    job: ShardJob,
    workspace: IndexFolder,
    base: IndexManifest | None,
    seen: SeenDocuments,
) -> list[ShardTask]:
    """Cut what is new into shards."""
    first, vectors = 0, not job.encoder.embeds
    with seen.opened(workspace.build / "seen.sqlite"):
        if base is not None:
            first = 1 + max((int(shard.name[:6]) for shard in base.shards), default=-1)
            files = (workspace.find(shard.name) for shard in base.shards)
            seen.know(document for file in files for document in read_documents(file, vectors=vectors))
        tasks = job.plan(
            seen.new(with_unit_vectors(documents, job.encoder.identity) if vectors else documents), first=first
        )
    if not tasks and base is None:
        raise InputError("The input holds no documents: nothing to index.")
    return tasks


def _same(there: IndexManifest, shards: Sequence[ShardFile], faiss: FaissOptions) -> bool:
    """Whether an index consists of these shards, with the FAISS index that is asked for."""
    asked = FaissOptions(factory=there.faiss.asked_factory, memory_bytes=there.faiss.memory_bytes)
    return [shard.name for shard in shards] == [shard.name for shard in there.shards] and asked == faiss


def _dimension(task: ShardTask, encoder: Encoder) -> int:
    """Dimensions of the vectors, before any is made."""
    if encoder.embeds and encoder.identity is not None:
        return encoder.identity.dimension
    return int(pq.read_schema(task.input).field("vector").type.list_size)


def _faiss_options(options: BuildOptions, base: IndexManifest | None) -> FaissOptions:
    """What was asked for now, or else when the index was built."""
    if base is None or options.faiss != FaissOptions():
        return options.faiss
    return FaissOptions(factory=base.faiss.asked_factory, memory_bytes=base.faiss.memory_bytes)
