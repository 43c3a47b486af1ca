"""`grace embed`: vectors and rationales of a file of texts."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from grace_retrieval.bundled import DEFAULT_MODEL
from grace_retrieval.cli.config import ConfigOption
from grace_retrieval.cli.console import error_console, print_json
from grace_retrieval.cli.options import (
    CacheOption,
    DeviceOption,
    EchoOption,
    EngineOption,
    EngineOptionsOption,
    Format,
    GpusOption,
    JsonOption,
    MaxNewTokensOption,
    MaxSentencesOption,
    ModelOption,
    NoRationaleOption,
    RayAddressOption,
    Role,
    RoleOption,
    Runner,
    RunnerOption,
    WorkersOption,
    chosen_mode,
    shard_runner,
)
from grace_retrieval.cli.output import check_output
from grace_retrieval.cli.progress import TextProgress, going_on
from grace_retrieval.cli.skips import Skips
from grace_retrieval.corpus.beir import open_texts
from grace_retrieval.errors import InputError

__all__ = ["embed"]


def embed(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="A .jsonl, .csv, .tsv, .json, .parquet or .txt file (.gz and .zst of them), BEIR folder, folder of "
            "datasets, or - for the standard input.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="A .parquet file (id, text, rationale, truncated, vector) or an .npy file (vectors)."
        ),
    ],
    model: ModelOption = DEFAULT_MODEL,
    role: RoleOption = Role.document,
    format: Annotated[Format | None, typer.Option("--format", help="Format of IN.", show_default="by its name")] = None,
    text_column: Annotated[str, typer.Option("--text-column", help="Column of the texts.")] = "text",
    id_column: Annotated[
        str | None,
        typer.Option("--id-column", help="Column of the ids.", show_default="id if there is one, else row numbers"),
    ] = None,
    title_column: Annotated[
        str | None, typer.Option("--title-column", help="Column of titles to put in front of the texts.")
    ] = None,
    no_rationale: NoRationaleOption = False,
    echo: EchoOption = False,
    no_text: Annotated[bool, typer.Option("--no-text", help="Leave the texts out of OUT.")] = False,
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Rows of a shard: a kill costs no more than one.")
    ] = 1024,
    max_new_tokens: MaxNewTokensOption = None,
    max_sentences: MaxSentencesOption = None,
    truncate_dim: Annotated[
        int | None, typer.Option("--truncate-dim", min=1, help="Dimensions to keep.", show_default="all")
    ] = None,
    cache: CacheOption = "default",
    device: DeviceOption = None,
    engine: EngineOption = "transformers",
    engine_option: EngineOptionsOption = None,
    runner: RunnerOption = Runner.local,
    workers: WorkersOption = None,
    gpus: GpusOption = None,
    ray_address: RayAddressOption = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Count and skip malformed rows instead of stopping.")
    ] = False,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Embed blank texts as zeros instead of stopping.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT, and discard unfinished work of another run.")
    ] = False,
    json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and warnings only.")] = False,
    config: ConfigOption = None,
) -> None:
    """Embed a file of texts, with rationales. Killed and started again, it goes on where it was."""
    started = time.monotonic()
    texts = open_texts(
        source,
        "queries" if role is Role.query else "corpus",
        format=format.value if format else None,
        text_column=text_column,
        id_column=id_column,
        title_column=title_column,
        allow_empty=allow_empty,
    )
    _check_output(output, source, overwrite=overwrite)
    run_shards = shard_runner(runner, workers=workers, gpus=gpus, address=ray_address, cache=cache)
    texts.check_first(skip_bad=skip_bad)
    from grace_retrieval.cache import open_cache
    from grace_retrieval.cli.loading import load_embedder
    from grace_retrieval.indexing.encoders import EmbedderEncoder
    from grace_retrieval.indexing.vector_file import EmbedOptions, check_unfinished, embed_to_file, vector_workspace

    check_unfinished(output, overwrite=overwrite)
    kept = open_cache(None if cache.lower() == "none" else cache)
    embedder = load_embedder(
        model,
        cache=kept,
        device=device,
        max_new_tokens=max_new_tokens,
        max_sentences=max_sentences,
        truncate_dim=truncate_dim,
        on_truncation="ignore",
        engine=engine,
        engine_options=engine_option,
        quiet=quiet,
    )
    encoder = EmbedderEncoder(embedder, rationale=chosen_mode(no_rationale, echo), role=role.value)
    skips = Skips(name=texts.name)
    try:
        with going_on(vector_workspace(output).build), TextProgress(total=None, quiet=quiet) as progress:
            summary = embed_to_file(
                skips.checked(texts.documents(skips if skip_bad else None)),
                output,
                encoder,
                options=EmbedOptions(batch=batch, keep_text=not no_text, overwrite=overwrite),
                source=texts,
                runner=run_shards,
                progress=progress,
            )
    finally:
        if kept is not None:
            kept.close()
    seconds = time.monotonic() - started
    if summary.shortened:
        error_console().print(
            f"Warning: {summary.shortened:,} texts were longer than the model takes "
            f"({embedder.pipeline.options.max_seq_length} tokens with the prompt) and were shortened at the end.",
            style="yellow",
        )
    if skips.count and output.suffix.lower() == ".npy":
        error_console().print(
            "Warning: rows were skipped, so a row of the array has not the number of its text.", style="yellow"
        )
    repeated = _repeated_ids(output)
    if repeated:
        error_console().print(
            f"Warning: {repeated:,} rows have the id of a row before them; an index refuses those that differ.",
            style="yellow",
        )
    if json:
        print_json(
            {
                "output": str(output),
                "model": model,
                "role": role.value,
                **asdict(summary),
                "skipped": skips.count,
                "repeated_ids": repeated,
                "seconds": round(seconds, 3),
            }
        )
    elif not quiet:
        notes = [
            f"{summary.resumed:,} rows were finished by an earlier run" if summary.resumed else "",
            f"{summary.generated:,} texts went through the model" if summary.generated else "",
            f"{summary.from_cache:,} were in the cache" if summary.from_cache else "",
            f"{summary.cut:,} rationales cut off before their end" if summary.cut else "",
            f"{skips.count:,} bad rows skipped" if skips.count else "",
        ]
        typer.echo(f"Wrote {summary.rows:,} vectors of {summary.dim} dimensions to {output} in {seconds:.1f} s.")
        if any(notes):
            typer.echo(f"{'; '.join(filter(None, notes))}.")


def _repeated_ids(output: Path) -> int:
    """Rows whose id was there before; an .npy file has no ids."""
    if output.suffix.lower() != ".parquet":
        return 0
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    ids = pq.read_table(output, columns=["id"], partitioning=None)["id"]
    return len(ids) - int(pc.count_distinct(ids).as_py())


def _check_output(output: Path, source: str, *, overwrite: bool) -> None:
    """Refuse an output that could not be written in the end."""
    if output.suffix.lower() not in (".parquet", ".npy"):
        raise InputError(f"Unknown output format: {str(output)!r}. Name it .parquet (a table) or .npy (vectors only).")
    if source != "-" and output.exists() and os.path.samefile(source, output):
        raise InputError(f"{output} is both input and output: give another output.")
    check_output(str(output), overwrite=overwrite)
