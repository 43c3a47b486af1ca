"""`grace index build`, `add` and `delete`: a corpus becomes an index, and an index changes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from grace_retrieval.cli.console import error_console, print_json
from grace_retrieval.cli.embed import Format
from grace_retrieval.cli.index_job import IndexJob, OnDuplicateId, OnDuplicateText, Runner, going_on, run_job
from grace_retrieval.cli.options import (
    CacheOption,
    DeviceOption,
    EngineOption,
    EngineOptionsOption,
    JsonOption,
    MaxNewTokensOption,
)
from grace_retrieval.errors import InputError

if TYPE_CHECKING:
    from grace_retrieval.indexing.build import Mode

__all__ = ["add", "build", "delete"]

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
RunnerOption = Annotated[Runner, typer.Option("--runner", help="Where shards are made.")]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Actors of --runner ray.", show_default="2")
]
RayAddressOption = Annotated[
    str | None, typer.Option("--ray-address", help="Cluster to join, such as auto.", show_default="a new local one")
]
GpusOption = Annotated[
    float | None, typer.Option("--gpus", min=0, help="GPUs of an actor of --runner ray.", show_default="0")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and warnings only.")]


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
) -> None:
    """Build an index. Killed and started again, the same command goes on where it was."""
    modes = [name for name, wanted in (("add", add), ("update", update), ("overwrite", overwrite)) if wanted]
    if len(modes) > 1 and modes != ["add", "update"]:
        raise InputError(f"--{' and --'.join(modes)} cannot go together: give one of them.")
    mode = cast("Mode", modes[-1] if modes else "new")
    if engine in ("local", "ray"):  # what --runner was called in 0.1
        error_console().print(f"Warning: --engine {engine} is now --runner {engine}.", style="yellow")
        engine, runner = "transformers", Runner(engine)
    of_ray = {"--workers": workers, "--gpus": gpus, "--ray-address": ray_address}
    if runner is not Runner.ray and (given := [name for name, value in of_ray.items() if value is not None]):
        raise InputError(f"{' and '.join(given)} would do nothing: they go with --runner ray.")
    run_job(
        IndexJob(
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
            engine_option=engine_option,
            runner=runner,
            workers=2 if workers is None else workers,
            gpus=gpus or 0,
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
    run_job(
        IndexJob(
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
    with going_on(folder):
        manifest, count = delete_documents(folder, wanted, missing="skip" if skip_missing else "error")
    if json:
        print_json({"index": str(folder), "deleted": count, "documents": manifest.rows})
    else:
        typer.echo(f"Deleted {count:,} documents; {manifest.rows:,} are left in {folder}.")
