"""`grace index build`, `add` and `delete`: a corpus becomes an index, and an index changes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from grace_retrieval.cli.console import Interrupted, error_console, print_json, status
from grace_retrieval.cli.embed import Format
from grace_retrieval.cli.job import Skips
from grace_retrieval.cli.options import CacheOption, DeviceOption, JsonOption, MaxNewTokensOption
from grace_retrieval.errors import InputError, ModelMismatchError

if TYPE_CHECKING:
    from grace_retrieval.indexing.build import BuildSummary, Mode
    from grace_retrieval.indexing.encoders import Encoder
    from grace_retrieval.indexing.manifest import IndexManifest
    from grace_retrieval.indexing.records import Corpus

__all__ = ["add", "build", "delete"]


class Engine(str, Enum):
    """Where shards are made."""

    local = "local"
    ray = "ray"


class OnDuplicateId(str, Enum):
    """What to do about an id that comes again with another content."""

    error = "error"
    skip = "skip"


class OnDuplicateText(str, Enum):
    """What to do about a text that comes again under another id."""

    keep = "keep"
    skip = "skip"


InputsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        help="Files (.jsonl, .csv, .parquet, .txt), folders, globs, BEIR folders, or - for the standard input.",
        show_default=False,
    ),
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder of the index.", show_default=False)]
FormatOption = Annotated[
    Format | None, typer.Option("--format", help="Format of the files.", show_default="by their names")
]
TextColumnOption = Annotated[str, typer.Option("--text-column", help="Column of the texts.")]
IdColumnOption = Annotated[
    str | None,
    typer.Option("--id-column", help="Column of the ids.", show_default="id if there is one, else from the content"),
]
TitleColumnOption = Annotated[str | None, typer.Option("--title-column", help="Column of the titles.")]
MetadataOption = Annotated[
    list[str] | None,
    typer.Option("--metadata", help="Column to carry along; may be repeated.", show_default="all others"),
]
VectorsOption = Annotated[
    str | None,
    typer.Option(
        "--vectors", help="Vectors that are there already: a column, or an .npy file.", metavar="COLUMN|FILE.npy"
    ),
]
SkipBadOption = Annotated[bool, typer.Option("--skip-bad", help="Count and skip malformed rows instead of stopping.")]
AllowEmptyOption = Annotated[
    bool, typer.Option("--allow-empty", help="Keep blank documents, which no search finds, instead of stopping.")
]
DuplicateIdOption = Annotated[
    OnDuplicateId, typer.Option("--on-duplicate-id", help="An id that comes again with another content.")
]
DuplicateTextOption = Annotated[
    OnDuplicateText, typer.Option("--on-duplicate-text", help="A text that comes again under another id.")
]
FactoryOption = Annotated[
    str | None,
    typer.Option("--factory", help="FAISS factory string, such as 'HNSW32,SQ8'.", show_default="chosen by size"),
]
MemoryOption = Annotated[
    str | None, typer.Option("--memory", help="Most memory of the FAISS index, such as 8GB.", show_default="no limit")
]
EngineOption = Annotated[Engine, typer.Option("--engine", help="Where shards are made.")]
WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Actors of --engine ray.")]
RayAddressOption = Annotated[
    str | None, typer.Option("--ray-address", help="Cluster to join, such as auto.", show_default="a new local one")
]
GpusOption = Annotated[float, typer.Option("--gpus", min=0, help="GPUs of an actor of --engine ray.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and warnings only.")]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What both `build` and `add` take."""

    inputs: Sequence[str]
    out: Path
    mode: Mode
    model: str | None = None
    format: Format | None = None
    text_column: str = "text"
    id_column: str | None = None
    title_column: str | None = None
    metadata: list[str] | None = None
    vectors: str | None = None
    no_rationale: bool = False
    shard_rows: int = 1024
    max_new_tokens: int | None = None
    truncate_dim: int | None = None
    on_duplicate_id: OnDuplicateId = OnDuplicateId.error
    on_duplicate_text: OnDuplicateText = OnDuplicateText.keep
    factory: str | None = None
    memory: str | None = None
    engine: Engine = Engine.local
    workers: int = 2
    gpus: float = 0
    ray_address: str | None = None
    cache: str = "default"
    device: str | None = None
    skip_bad: bool = False
    allow_empty: bool = False
    dry_run: bool = False
    json: bool = False
    quiet: bool = False


def build(
    inputs: InputsArgument,
    out: OutOption,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Bundled model, model folder or hub name.", metavar="NAME", show_default="grace-nano"
        ),
    ] = None,
    add: Annotated[bool, typer.Option("--add", help="Add to the index that is there.")] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Add, and replace documents whose ids are there with another content.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the index that is there.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only estimate: texts, tokens, generations, disk and time.")
    ] = False,
    format: FormatOption = None,
    text_column: TextColumnOption = "text",
    id_column: IdColumnOption = None,
    title_column: TitleColumnOption = None,
    metadata: MetadataOption = None,
    vectors: VectorsOption = None,
    no_rationale: Annotated[
        bool, typer.Option("--no-rationale", help="Embed the texts alone, without generating.")
    ] = False,
    shard_rows: Annotated[
        int, typer.Option("--shard-rows", min=1, help="Documents of a shard; a kill costs no more than one.")
    ] = 1024,
    max_new_tokens: MaxNewTokensOption = None,
    truncate_dim: Annotated[
        int | None, typer.Option("--truncate-dim", min=1, help="Dimensions to keep.", show_default="all")
    ] = None,
    on_duplicate_id: DuplicateIdOption = OnDuplicateId.error,
    on_duplicate_text: DuplicateTextOption = OnDuplicateText.keep,
    factory: FactoryOption = None,
    memory: MemoryOption = None,
    engine: EngineOption = Engine.local,
    workers: WorkersOption = 2,
    gpus: GpusOption = 0,
    ray_address: RayAddressOption = None,
    cache: CacheOption = "default",
    device: DeviceOption = None,
    skip_bad: SkipBadOption = False,
    allow_empty: AllowEmptyOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Build an index. Killed and started again, the same command goes on where it was."""
    modes = [name for name, wanted in (("add", add), ("update", update), ("overwrite", overwrite)) if wanted]
    if len(modes) > 1 and modes != ["add", "update"]:
        raise InputError(f"--{' and --'.join(modes)} cannot go together: give one of them.")
    mode = cast("Mode", modes[-1] if modes else "new")
    _run(
        _Job(
            inputs=inputs,
            out=out,
            mode=mode,
            model=model,
            format=format,
            text_column=text_column,
            id_column=id_column,
            title_column=title_column,
            metadata=metadata,
            vectors=vectors,
            no_rationale=no_rationale,
            shard_rows=shard_rows,
            max_new_tokens=max_new_tokens,
            truncate_dim=truncate_dim,
            on_duplicate_id=on_duplicate_id,
            on_duplicate_text=on_duplicate_text,
            factory=factory,
            memory=memory,
            engine=engine,
            workers=workers,
            gpus=gpus,
            ray_address=ray_address,
            cache=cache,
            device=device,
            skip_bad=skip_bad,
            allow_empty=allow_empty,
            dry_run=dry_run,
            json=json,
            quiet=quiet,
        )
    )


def add(
    inputs: InputsArgument,
    out: OutOption,
    update: Annotated[
        bool, typer.Option("--update", help="Replace documents whose ids are there with another content.")
    ] = False,
    format: FormatOption = None,
    text_column: TextColumnOption = "text",
    id_column: IdColumnOption = None,
    title_column: TitleColumnOption = None,
    metadata: MetadataOption = None,
    vectors: VectorsOption = None,
    on_duplicate_id: DuplicateIdOption = OnDuplicateId.error,
    on_duplicate_text: DuplicateTextOption = OnDuplicateText.keep,
    factory: FactoryOption = None,
    memory: MemoryOption = None,
    cache: CacheOption = "default",
    device: DeviceOption = None,
    skip_bad: SkipBadOption = False,
    allow_empty: AllowEmptyOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Add documents to an index, embedded by its own model. Documents that are there as they are stay."""
    _run(
        _Job(
            inputs=inputs,
            out=out,
            mode="update" if update else "add",
            format=format,
            text_column=text_column,
            id_column=id_column,
            title_column=title_column,
            metadata=metadata,
            vectors=vectors,
            on_duplicate_id=on_duplicate_id,
            on_duplicate_text=on_duplicate_text,
            factory=factory,
            memory=memory,
            cache=cache,
            device=device,
            skip_bad=skip_bad,
            allow_empty=allow_empty,
            json=json,
            quiet=quiet,
        )
    )


def delete(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the index.", show_default=False)],
    ids: Annotated[
        list[str], typer.Argument(metavar="ID...", help="Ids, or - to read one a line from the standard input.")
    ],
    skip_missing: Annotated[bool, typer.Option("--skip-missing", help="Ids that are not there are no error.")] = False,
    json: JsonOption = False,
) -> None:
    """Delete documents: the shards that hold them are written again without them."""
    from grace_retrieval.indexing.removal import delete_documents

    wanted = [line.rstrip("\r\n") for line in sys.stdin] if ids == ["-"] else ids
    with _going_on(folder):
        manifest, count = delete_documents(folder, wanted, missing="skip" if skip_missing else "error")
    if json:
        print_json({"index": str(folder), "deleted": count, "documents": manifest.rows})
    else:
        typer.echo(f"Deleted {count:,} documents; {manifest.rows:,} are left in {folder}.")


def parse_bytes(text: str | None, option: str = "--memory") -> int | None:
    """Read a size such as 8GB or 500MB (powers of 1000; GiB and MiB: of 1024).

    Args:
        text: The size; None is none.
        option: Name of the option, for the message.

    Raises:
        InputError: If it is no size.
    """
    if text is None:
        return None
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    units |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
    number = text.strip().rstrip("BbIiKkMmGgTt ")
    unit = text.strip()[len(number) :].strip().upper()
    try:
        size = int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size < 1:
        raise InputError(f"{option} {text!r} is no size: give something like 8GB or 500MB.")
    return size


def _run(job: _Job) -> None:
    from grace_retrieval.cli.progress import TextProgress
    from grace_retrieval.indexing.build import BuildOptions, build_with
    from grace_retrieval.indexing.commit import FaissOptions
    from grace_retrieval.indexing.local_engine import run_local
    from grace_retrieval.indexing.manifest import IndexManifest
    from grace_retrieval.indexing.records import Columns, Corpus

    started = time.monotonic()
    corpus = Corpus(
        job.inputs,
        format=job.format.value if job.format else None,
        columns=Columns(
            text=job.text_column,
            id=job.id_column,
            title=job.title_column,
            metadata=None if job.metadata is None else tuple(job.metadata),
            vectors=job.vectors,
        ),
        allow_empty=job.allow_empty,
    )
    options = BuildOptions(
        shard_rows=job.shard_rows,
        rationale=False if job.no_rationale else None,
        on_duplicate_id=job.on_duplicate_id.value,
        on_duplicate_text=job.on_duplicate_text.value,
        faiss=FaissOptions(factory=job.factory, memory_bytes=parse_bytes(job.memory)),
    )
    base = IndexManifest.read(job.out) if job.mode in ("add", "update") else None
    skips = Skips(name="the input")
    on_bad = skips if job.skip_bad else None
    with _encoder(job, corpus, base) as encoder:
        if job.dry_run:
            _estimate(job, corpus, encoder, skips)
            return
        engine: Any = run_local
        if job.engine is Engine.ray:
            from grace_retrieval.indexing.ray_engine import RayEngine

            cache = None if job.cache.lower() == "none" else job.cache
            engine = RayEngine(workers=job.workers, gpus=job.gpus, cache=cache, address=job.ray_address)
        with TextProgress(total=None, quiet=job.quiet) as progress, _going_on(job.out):
            if encoder.embeds:
                encoder.embedder.writer.on_row = progress.advance
            summary = build_with(
                encoder,
                _checked(corpus, on_bad, skips),
                job.out,
                options=options,
                mode=job.mode,
                engine=engine,
                progress=progress,
            )
        _report(job, summary, encoder, skips, time.monotonic() - started)


def _checked(corpus: Corpus, on_bad: Any, skips: Skips) -> Iterator[Any]:
    count = 0
    for document in corpus.documents(on_bad):
        count += 1
        yield document
    skips.check(count)


@contextmanager
def _going_on(folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"Interrupted. Finished shards are kept in {folder / 'build'}: the same command goes on from there."
        ) from None


@contextmanager
def _encoder(job: _Job, corpus: Corpus, base: IndexManifest | None) -> Iterator[Any]:
    """What makes the rows, with a cache that is closed in the end."""
    from grace_retrieval.indexing.encoders import EmbedderEncoder, GivenVectors

    if job.vectors is not None and job.model is None:
        if base is None:
            yield GivenVectors(rationale=not job.no_rationale)
        else:
            settings = dict(base.embedder) if base.embedder else None
            yield GivenVectors(rationale=base.rationale, identity=base.identity, settings=settings)
        return
    from grace_retrieval.cli.loading import load_embedder, open_recording_cache, quiet_libraries

    cache = open_recording_cache(job.cache)
    try:
        if base is not None and base.embedder is not None and job.model is None:
            from grace_retrieval.indexing.loading import load_embedder as load_again

            with status("Loading the model of the index ...", show=not job.quiet):
                quiet_libraries(show_downloads=False)
                embedder = load_again(base.embedder, cache=cache, device=job.device, on_truncation="ignore")
        else:
            embedder = load_embedder(
                job.model or "grace-nano",
                cache=cache,
                device=job.device,
                max_new_tokens=job.max_new_tokens,
                truncate_dim=job.truncate_dim,
                on_truncation="ignore",
                quiet=job.quiet,
            )
        rationale = base.rationale if base is not None else False if job.no_rationale else None
        encoder = EmbedderEncoder(embedder, cache, rationale=rationale)
        if job.vectors is None:
            yield encoder
        else:
            _check_fingerprints(corpus, encoder)
            yield GivenVectors(rationale=encoder.rationale, identity=encoder.identity, settings=encoder.settings)
    finally:
        cache.close()


def _check_fingerprints(corpus: Corpus, encoder: Encoder) -> None:
    """Refuse vectors that say they were made with something else than the model that is named."""
    for name, there in corpus.fingerprints():
        if encoder.identity is not None and (differences := encoder.identity.document.differences(there)):
            raise ModelMismatchError(
                f"{name} holds vectors of the model {there.model!r}, not of {encoder.identity.model!r} as it is asked "
                f"for here ({'; '.join(differences)}). Name the model and options they were made with."
            )


def _estimate(job: _Job, corpus: Corpus, encoder: Encoder, skips: Skips) -> None:
    from grace_retrieval.indexing.choose import choose_index
    from grace_retrieval.indexing.estimate import estimate_build

    if not encoder.embeds:
        raise InputError("--dry-run estimates embedding; with --vectors there is none.")
    embedding: Any = encoder
    with status("Reading the input and embedding a sample ...", show=not job.quiet):
        found = estimate_build(
            _checked(corpus, skips if job.skip_bad else None, skips),
            embedding.embedder,
            embedding.cache,
            rationale=encoder.rationale,
        )
    dimension = embedding.embedder.get_embedding_dimension() or 0
    choice = choose_index(found.documents, dimension, memory_bytes=parse_bytes(job.memory), factory=job.factory)
    if job.json:
        print_json({**asdict(found), "factory": choice.factory, "index_bytes": choice.bytes, "skipped": skips.count})
        return
    lines = [
        f"{found.documents:,} documents, {found.tokens:,} tokens with the prompt; {found.shortened:,} are longer than "
        "the model takes.",
        f"{found.cached:,} rationales are in the cache, {found.generations:,} are to be generated: about "
        f"{found.new_tokens:,} tokens, at most {found.most_new_tokens:,}.",
        f"Disk: about {_size(found.disk_bytes)}. FAISS: {choice.factory}. {choice.explanation}",
    ]
    if found.seconds is not None:
        lines.append(
            f"Time on this machine: about {_duration(found.seconds)}, by a sample of {found.sample} documents (now in "
            "the cache)."
        )
    for line in lines:
        typer.echo(line)


def _report(job: _Job, summary: BuildSummary, encoder: Encoder, skips: Skips, seconds: float) -> None:
    manifest, twice = summary.manifest, summary.duplicates
    truncated = sum(shard.truncated for shard in manifest.shards)
    shortened = sum(shard.text_truncated for shard in manifest.shards)
    blank = sum(len(shard.blank) for shard in manifest.shards)
    cache = getattr(encoder, "cache", None)
    counts = {
        "added": summary.added,
        "resumed": summary.resumed,
        "replaced": len(twice.replaced),
        "unchanged": twice.unchanged,
        "repeated": twice.repeated,
        "clashing_ids": twice.clashing_ids,
        "equal_texts": twice.equal_texts,
        "skipped": skips.count,
        "blank": blank,
        "generated": cache.generated if cache else 0,
        "from_cache": cache.found if cache else 0,
        "rationales_cut_off": truncated,
        "texts_shortened": shortened,
    }
    if job.json:
        print_json(
            {
                "index": str(job.out),
                "documents": manifest.rows,
                "dimension": manifest.dimension,
                "model": manifest.identity.model if manifest.identity else None,
                "generation": manifest.generation,
                "factory": manifest.faiss.factory,
                "explanation": manifest.faiss.explanation,
                **counts,
                "seconds": round(seconds, 3),
            }
        )
        return
    if shortened:
        error_console().print(
            f"Warning: {shortened:,} texts were longer than the model takes and were shortened at the end.",
            style="yellow",
        )
    if job.quiet:
        return
    typer.echo(
        f"{job.out} holds {manifest.rows:,} documents of {manifest.dimension} dimensions, after {seconds:.1f} s: "
        f"{summary.added:,} came in."
    )
    names = {
        "resumed": "were finished by an earlier run",
        "replaced": "replaced older ones",
        "unchanged": "were there as they are",
        "repeated": "repeated others",
        "clashing_ids": "had the id of another and were left out",
        "equal_texts": "had the text of another",
        "skipped": "bad rows were skipped",
        "blank": "are blank, and no search finds them",
        "generated": "went through the model",
        "from_cache": "were in the cache",
        "rationales_cut_off": "rationales were ended by the token budget",
    }
    if notes := [f"{counts[name]:,} {what}" for name, what in names.items() if counts[name]]:
        typer.echo(f"{'; '.join(notes)}.")
    typer.echo(f"FAISS: {manifest.faiss.factory}. {manifest.faiss.explanation}")


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
