"""IndexJob: what `grace index build` and `add` do, from their options to their report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from grace_retrieval.cli.console import Interrupted, error_console, print_json, status
from grace_retrieval.cli.embed import Format
from grace_retrieval.cli.skips import Skips
from grace_retrieval.errors import InputError, ModelMismatchError

if TYPE_CHECKING:
    from grace_retrieval.corpus.corpus import Corpus
    from grace_retrieval.indexing.build import BuildSummary, Mode
    from grace_retrieval.indexing.encoders import Encoder
    from grace_retrieval.indexing.manifest import IndexManifest

__all__ = ["IndexJob", "OnDuplicateId", "OnDuplicateText", "Runner", "going_on", "parse_bytes", "run_job"]


class Runner(str, Enum):
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


@dataclass(frozen=True, kw_only=True)
class IndexJob:
    """Options of `build` and `add`, under their names on the command line."""

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
    engine: str = "transformers"
    engine_option: list[str] | None = None
    runner: Runner = Runner.local
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


def run_job(job: IndexJob) -> None:
    """Build, add or estimate, and report it.

    Args:
        job: What was asked for.

    Raises:
        InputError: If the input, an option or the folder cannot be used.
        ModelMismatchError: If vectors of two models would be mixed.
        Interrupted: On Ctrl-C.
    """
    from grace_retrieval.cli.progress import TextProgress
    from grace_retrieval.corpus.corpus import Columns, Corpus
    from grace_retrieval.indexing.build import BuildOptions, build_with
    from grace_retrieval.indexing.commit import FaissOptions
    from grace_retrieval.indexing.local_engine import run_local
    from grace_retrieval.indexing.manifest import IndexManifest

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
        run_shards: Any = run_local
        if job.runner is Runner.ray:
            from grace_retrieval.indexing.ray_engine import RayEngine

            cache = None if job.cache.lower() == "none" else job.cache
            run_shards = RayEngine(workers=job.workers, gpus=job.gpus, cache=cache, address=job.ray_address)
        with TextProgress(total=None, quiet=job.quiet) as progress, going_on(job.out):
            if encoder.embeds:
                encoder.on_row = progress.advance
            summary = build_with(
                encoder,
                _checked(corpus, on_bad, skips),
                job.out,
                options=options,
                mode=job.mode,
                engine=run_shards,
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
def going_on(folder: Path) -> Iterator[None]:
    """Say on Ctrl-C what is kept.

    Args:
        folder: Folder of the index.

    Raises:
        Interrupted: On Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"Interrupted. Finished shards are kept in {folder / 'build'}: the same command goes on from there."
        ) from None


@contextmanager
def _encoder(job: IndexJob, corpus: Corpus, base: IndexManifest | None) -> Iterator[Any]:
    """What makes the rows, with a cache that is closed in the end."""
    from grace_retrieval.indexing.encoders import EmbedderEncoder, GivenVectors

    if (job.engine != "transformers" or job.engine_option) and (base is not None or (job.vectors and not job.model)):
        what = f"{job.out} is added to by its own engine" if base is not None else "given vectors need no engine"
        raise InputError(f"--engine {job.engine}: {what}. Leave out --engine and --engine-option.")
    if job.vectors is not None and job.model is None:
        if base is None:
            yield GivenVectors(rationale=not job.no_rationale)
        else:
            settings = dict(base.embedder) if base.embedder else None
            yield GivenVectors(rationale=base.rationale, identity=base.identity, settings=settings)
        return
    from grace_retrieval.cache import open_cache
    from grace_retrieval.cli.loading import load_embedder, quiet_libraries

    cache = open_cache(None if job.cache.lower() == "none" else job.cache)
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
                engine=job.engine,
                engine_options=job.engine_option,
                quiet=job.quiet,
            )
        rationale = base.rationale if base is not None else False if job.no_rationale else None
        encoder = EmbedderEncoder(embedder, rationale=rationale)
        if job.vectors is None:
            yield encoder
        else:
            _check_fingerprints(corpus, encoder)
            yield GivenVectors(rationale=encoder.rationale, identity=encoder.identity, settings=encoder.settings)
    finally:
        if cache is not None:
            cache.close()


def _check_fingerprints(corpus: Corpus, encoder: Encoder) -> None:
    """Refuse vectors that say they were made with something else than the model that is named."""
    for name, there in corpus.fingerprints():
        if encoder.identity is not None and (differences := encoder.identity.document.differences(there)):
            raise ModelMismatchError(
                f"{name} holds vectors of the model {there.model!r}, not of {encoder.identity.model!r} as it is asked "
                f"for here ({'; '.join(differences)}). Name the model and options they were made with."
            )


def _estimate(job: IndexJob, corpus: Corpus, encoder: Encoder, skips: Skips) -> None:
    from grace_retrieval.indexing.choose import choose_index
    from grace_retrieval.indexing.estimate import estimate_build

    if not encoder.embeds:
        raise InputError("--dry-run estimates embedding; with --vectors there is none.")
    embedding: Any = encoder
    with status("Reading the input and embedding a sample ...", show=not job.quiet):
        found = estimate_build(
            _checked(corpus, skips if job.skip_bad else None, skips),
            embedding.embedder,
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


def _report(job: IndexJob, summary: BuildSummary, encoder: Encoder, skips: Skips, seconds: float) -> None:
    manifest, twice = summary.manifest, summary.duplicates
    truncated = sum(shard.truncated for shard in manifest.shards)
    shortened = sum(shard.text_truncated for shard in manifest.shards)
    blank = sum(len(shard.blank) for shard in manifest.shards)
    done = encoder.embedder.pipeline.counts if encoder.embeds else {"generated": 0, "found": 0}  # type: ignore[attr-defined]
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
        "generated": done["generated"],
        "from_cache": done["found"],
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
