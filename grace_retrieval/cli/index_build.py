"""`grace index build`, `add` and `delete`: a corpus becomes an index, and an index changes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from grace_retrieval.bundled import DEFAULT_MODEL, chosen_model
from grace_retrieval.cli.config import ConfigOption
from grace_retrieval.cli.console import error_console, print_json, status
from grace_retrieval.cli.index_base import build_mode, built_with, check_same, given_columns, warn_of_ids
from grace_retrieval.cli.index_summary import print_build, print_estimate
from grace_retrieval.cli.options import (
    CacheOption,
    DeviceOption,
    EchoOption,
    EngineOption,
    EngineOptionsOption,
    Format,
    GpusOption,
    IndexModelOption,
    JsonOption,
    MaxNewTokensOption,
    MaxSentencesOption,
    NoRationaleOption,
    RayAddressOption,
    Runner,
    RunnerOption,
    WorkersOption,
    chosen_mode,
    parse_bytes,
    shard_runner,
)
from grace_retrieval.cli.progress import TextProgress, going_on
from grace_retrieval.cli.skips import Skips
from grace_retrieval.errors import InputError

if TYPE_CHECKING:
    from grace_retrieval.corpus.corpus import Corpus
    from grace_retrieval.corpus.document import Document
    from grace_retrieval.embedder import GraceEmbedder
    from grace_retrieval.indexing.commit import FaissOptions
    from grace_retrieval.indexing.encoders import EmbedderEncoder, GivenVectors
    from grace_retrieval.indexing.manifest import IndexManifest
    from grace_retrieval.rationale import RationaleMode

__all__ = ["add", "build", "delete"]


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
        help="Files (.jsonl, .csv, .tsv, .json, .parquet, .txt; .gz and .zst of them), folders, globs, BEIR folders, "
        "folders of datasets, or - for the standard input.",
        show_default=False,
    ),
]
OutOption = Annotated[Path, typer.Option("--out", help="Folder of the index.", show_default=False)]
FormatOption = Annotated[
    Format | None, typer.Option("--format", help="Format of the files.", show_default="by their names")
]
TextColumnOption = Annotated[
    str | None, typer.Option("--text-column", help="Column of the texts.", show_default="text, or as it was built")
]
IdColumnOption = Annotated[
    str | None,
    typer.Option(
        "--id-column",
        help="Column of the ids.",
        show_default="id if there is one, else from the content, or as it was built",
    ),
]
TitleColumnOption = Annotated[
    str | None,
    typer.Option("--title-column", help="Column of the titles; '' is none.", show_default="none, or as it was built"),
]
MetadataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--metadata", help="Column to carry along; may be repeated.", show_default="all others, or as it was built"
    ),
]
VectorsOption = Annotated[
    str | None,
    typer.Option(
        "--vectors",
        help="Vectors that are there already: a column, or a file (.npy, .fvecs, .fbin, .hdf5, ...).",
        metavar="COLUMN|FILE",
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
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and warnings only.")]


def build(
    inputs: InputsArgument,
    out: OutOption,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Bundled model, model folder or hub name.",
            metavar="NAME",
            show_default=f"GRACE_MODEL, or {DEFAULT_MODEL}",
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
    text_column: TextColumnOption = None,
    id_column: IdColumnOption = None,
    title_column: TitleColumnOption = None,
    metadata: MetadataOption = None,
    vectors: VectorsOption = None,
    no_rationale: NoRationaleOption = False,
    echo: EchoOption = False,
    centre: Annotated[
        bool,
        typer.Option("--centre", help="Take away what all vectors have in common: for models not trained to retrieve."),
    ] = False,
    centre_queries: Annotated[
        str | None,
        typer.Option(
            "--centre-queries",
            metavar="FILE",
            help="--centre with a sample of queries, where they are not as short as the documents' first words.",
            show_default="first words of the documents",
        ),
    ] = None,
    shard_rows: Annotated[
        int, typer.Option("--shard-rows", min=1, help="Documents of a shard; a kill costs no more than one.")
    ] = 1024,
    max_new_tokens: MaxNewTokensOption = None,
    max_sentences: MaxSentencesOption = None,
    truncate_dim: Annotated[
        int | None, typer.Option("--truncate-dim", min=1, help="Dimensions to keep.", show_default="all")
    ] = None,
    on_duplicate_id: DuplicateIdOption = OnDuplicateId.error,
    on_duplicate_text: DuplicateTextOption = OnDuplicateText.keep,
    factory: FactoryOption = None,
    memory: MemoryOption = None,
    engine: EngineOption = "transformers",
    engine_option: EngineOptionsOption = None,
    runner: RunnerOption = Runner.local,
    workers: WorkersOption = None,
    gpus: GpusOption = None,
    ray_address: RayAddressOption = None,
    cache: CacheOption = "default",
    device: DeviceOption = None,
    skip_bad: SkipBadOption = False,
    allow_empty: AllowEmptyOption = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    config: ConfigOption = None,
) -> None:
    """Build an index. Killed and started again, the same command goes on where it was."""
    mode = build_mode(add=add, update=update, overwrite=overwrite)
    if engine in ("local", "ray"):  # what --runner was called in 0.1
        error_console().print(f"Warning: --engine {engine} is now --runner {engine}.", style="yellow")
        engine, runner = "transformers", Runner(engine)
    run_shards = shard_runner(runner, workers=workers, gpus=gpus, address=ray_address, cache=cache)
    started = time.monotonic()
    from grace_retrieval.cli.loading import load_again, load_embedder
    from grace_retrieval.corpus.corpus import Columns, Corpus
    from grace_retrieval.indexing.build import BuildOptions, build_with
    from grace_retrieval.indexing.commit import FaissOptions, check_faiss
    from grace_retrieval.indexing.manifest import IndexManifest
    from grace_retrieval.indexing.workspace import IndexFolder

    base = IndexManifest.read(out) if mode in ("add", "update") else None
    corpus = Corpus(
        inputs,
        format=format.value if format else None,
        columns=Columns(
            **(built_with(base) | given_columns(text_column, id_column, title_column, metadata)), vectors=vectors
        ),
        allow_empty=allow_empty,
        metadata_required=metadata is not None,
    )
    options = BuildOptions(
        shard_rows=shard_rows,
        rationale=chosen_mode(no_rationale, echo),
        on_duplicate_id=on_duplicate_id.value,
        on_duplicate_text=on_duplicate_text.value,
        faiss=FaissOptions(factory=factory, memory_bytes=parse_bytes(memory)),
    )
    if (engine != "transformers" or engine_option) and (base is not None or (vectors and not model)):
        what = f"{out} is added to by its own engine" if base is not None else "given vectors need no engine"
        raise InputError(f"--engine {engine}: {what}. Leave out --engine and --engine-option.")
    centre = centre or centre_queries is not None
    if centre and (base is not None or vectors or "-" in inputs):
        why = f"{out} has its own" if base is not None else "it needs texts that can be read twice"
        raise InputError(f"--centre is fitted on a sample of the corpus, and {why}: leave it out.")
    # What can be known in a second comes before what takes minutes.
    check_faiss(options.faiss)
    asked = None if centre_queries is None else _sample_of_queries(centre_queries)
    corpus.check_first(skip_bad=skip_bad)
    warn_of_ids(out, base, corpus)
    IndexFolder(out).check()

    load: Callable[..., GraceEmbedder] = partial(
        load_embedder,
        chosen_model(model),
        max_new_tokens=max_new_tokens,
        max_sentences=max_sentences,
        truncate_dim=truncate_dim,
        engine=engine,
        engine_options=engine_option,
    )
    if base is not None:
        check_same(
            out,
            base,
            no_rationale=no_rationale,
            given={
                "--max-new-tokens": max_new_tokens,
                "--max-sentences": max_sentences,
                "--truncate-dim": truncate_dim,
            },
        )
        if base.identity is None and vectors is None:
            raise InputError(
                f"{out} holds vectors that were made by a model that is not known: add documents with vectors "
                "(--vectors), or build another index."
            )
        load = partial(load_again, out, base, model=model)
    load = partial(load, device=device, on_truncation="ignore", quiet=quiet)
    if centre and not dry_run:
        load = partial(_centred, load, corpus, queries=asked, rationale=options.rationale, skip_bad=skip_bad)
    skips = Skips(name="the input")
    documents = skips.checked(corpus.documents(skips if skip_bad else None))
    with _encoder(corpus, base, load, out=out, model=model, cache=cache, rationale=options.rationale) as encoder:
        if dry_run:
            _estimate(documents, encoder, options.faiss, skips, json=json, quiet=quiet)
            return
        with going_on(out / "build"), TextProgress(total=None, quiet=quiet) as progress:
            summary = build_with(
                encoder,
                documents,
                out,
                options=options,
                mode=mode,
                runner=run_shards,
                progress=progress,
                columns=corpus.described,
            )
        print_build(
            summary,
            encoder,
            out,
            skipped=skips.count,
            seconds=time.monotonic() - started,
            json=json,
            quiet=quiet,
        )


def add(
    inputs: InputsArgument,
    out: OutOption,
    update: Annotated[
        bool, typer.Option("--update", help="Replace documents whose ids are there with another content.")
    ] = False,
    format: FormatOption = None,
    text_column: TextColumnOption = None,
    id_column: IdColumnOption = None,
    title_column: TitleColumnOption = None,
    metadata: MetadataOption = None,
    vectors: VectorsOption = None,
    model: IndexModelOption = None,
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
    """Add documents to an index, embedded by its own model. Documents that are there as they are stay.

    Columns are those that the index was built with, unless they are given.
    """
    build(
        inputs,
        out,
        model=model,
        add=True,
        update=update,
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
    with going_on(folder / "build"):
        manifest, count = delete_documents(folder, wanted, missing="skip" if skip_missing else "error")
    if json:
        print_json({"index": str(folder), "deleted": count, "documents": manifest.rows})
    else:
        typer.echo(f"Deleted {count:,} documents; {manifest.rows:,} are left in {folder}.")


def _sample_of_queries(path: str) -> list[str]:
    """The first queries of a file."""
    from itertools import islice

    from grace_retrieval.corpus.beir import open_texts
    from grace_retrieval.indexing.centre import SAMPLE

    return [row.embedded_text for row in islice(open_texts(path, "queries").documents(), SAMPLE)]


def _centred(
    load: Callable[..., GraceEmbedder],
    corpus: Corpus,
    *,
    queries: list[str] | None,
    rationale: RationaleMode | None,
    skip_bad: bool,
    cache: Any,
) -> GraceEmbedder:
    """Load an embedder, and fit its centring on the corpus."""
    from grace_retrieval.indexing.centre import fit_on_corpus

    embedder = load(cache=cache)
    with status("Fitting the centring on a sample ..."):
        skips = Skips(name="the input")
        documents = corpus.documents(skips if skip_bad else None)
        fit_on_corpus(embedder, documents, queries=queries, rationale=rationale)
    return embedder


@contextmanager
def _encoder(
    corpus: Corpus,
    base: IndexManifest | None,
    load: Callable[..., GraceEmbedder],
    *,
    out: Path,
    model: str | None,
    cache: str,
    rationale: RationaleMode | None,
) -> Iterator[EmbedderEncoder | GivenVectors]:
    """What makes the rows, with a cache that is closed in the end."""
    from grace_retrieval.cache import open_cache
    from grace_retrieval.indexing.encoders import EmbedderEncoder, GivenVectors
    from grace_retrieval.indexing.origin import check_origin

    given = corpus.columns.vectors is not None
    if given and model is None:
        if base is None:
            yield GivenVectors(rationale=rationale is not False)
        else:
            settings = dict(base.embedder) if base.embedder else None
            if base.identity is not None:
                check_origin(corpus, base.identity, named=False, index=str(out))
            yield GivenVectors(rationale=base.rationale, identity=base.identity, settings=settings)
        return
    kept = open_cache(None if cache.lower() == "none" else cache)
    try:
        encoder = EmbedderEncoder(load(cache=kept), rationale=base.rationale if base else rationale)
        if not given:
            yield encoder
            return
        check_origin(corpus, encoder.embedder.vector_identity(encoder.rationale), named=True, index=str(out))
        yield GivenVectors(rationale=encoder.rationale, identity=encoder.identity, settings=encoder.settings)
    finally:
        if kept is not None:
            kept.close()


def _estimate(
    documents: Iterable[Document],
    encoder: EmbedderEncoder | GivenVectors,
    options: FaissOptions,
    skips: Skips,
    *,
    json: bool,
    quiet: bool,
) -> None:
    from grace_retrieval.indexing.choose import choose_index
    from grace_retrieval.indexing.commit import check_faiss
    from grace_retrieval.indexing.encoders import EmbedderEncoder
    from grace_retrieval.indexing.estimate import estimate_build

    if not isinstance(encoder, EmbedderEncoder):
        raise InputError("--dry-run estimates embedding; with --vectors there is none.")
    with status("Reading the input and embedding a sample ...", show=not quiet):
        found = estimate_build(documents, encoder.embedder, rationale=encoder.rationale)
    dimension = encoder.embedder.get_embedding_dimension() or 0
    check_faiss(options, rows=found.documents, dimension=dimension)
    choice = choose_index(found.documents, dimension, memory_bytes=options.memory_bytes, factory=options.factory)
    print_estimate(found, choice, skipped=skips.count, json=json)
