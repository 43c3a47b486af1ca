"""`grace bench ann`: indexes over a matrix, or a recommendation from rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from grace_benchmarks.cli.options import (
    NewRows,
    OutOption,
    QuietOption,
    RunOption,
    ThreadsOption,
    WorkOption,
    whole,
)
from grace_retrieval.errors import InputError

if TYPE_CHECKING:
    from grace_benchmarks.suites import AnnPart

__all__ = ["ann"]


def ann(
    suite: Annotated[str | None, typer.Option("--suite", help="Suite to run: a name or a YAML file.")] = None,
    vectors: Annotated[
        Path | None,
        typer.Option(
            "--vectors",
            help="An .npy, .npz, .parquet, .fvecs, .bvecs, .fbin, .u8bin, .i8bin or .hdf5 file, or a folder of parquet "
            "(an index).",
        ),
    ] = None,
    column: Annotated[
        str, typer.Option("--column", help="Column of the vectors in parquet, array in .npz, data set in HDF5.")
    ] = "vector",
    queries: Annotated[
        str | None,
        typer.Option(
            "--queries",
            help="File of queries, or how many rows to hold out as queries.",
            show_default="1000, or what an HDF5 file brings",
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(
            "--truth", help="File of the queries' neighbours, with --queries FILE.", show_default="an exact search"
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option("--metric", help="cosine, l2 or ip.", show_default="what an HDF5 file says, else cosine"),
    ] = None,
    n: Annotated[str, typer.Option("--n", help="Vectors: to make up, or to recommend for. 1e6 is fine.")] = "10000",
    dim: Annotated[int, typer.Option("--dim", help="Their dimensions.")] = 256,
    seed: Annotated[int, typer.Option("--seed", help="Seed of made-up vectors and of choices.")] = 0,
    factory: Annotated[
        list[str] | None,
        typer.Option("--factory", help="FAISS factory string; again for another.", show_default="a usual few"),
    ] = None,
    search: Annotated[
        list[str] | None, typer.Option("--search", help="Search parameters such as nprobe=16; again for others.")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="Neighbours of each query.")] = 10,
    repeats: Annotated[int, typer.Option("--repeats", help="Rounds of measurement, at least 3.")] = 5,
    threads: ThreadsOption = None,
    build_threads: Annotated[int, typer.Option("--build-threads", min=1, help="Threads of building.")] = 1,
    shard_rows: Annotated[
        int,
        typer.Option("--shard-rows", min=0, help="Vectors of a piece, searched from disk; 0 for one index in memory."),
    ] = 0,
    scale: Annotated[float, typer.Option("--scale", help="Factor on the made-up vectors of a suite.")] = 1.0,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out vectors with NaN or only zeros instead of stopping.")
    ] = False,
    recommend: Annotated[
        bool, typer.Option("--recommend", help="Measure nothing: recommend an index for --n and --dim.")
    ] = False,
    memory: Annotated[
        str | None, typer.Option("--memory", help="Most memory of a recommended index, such as 16GB.")
    ] = None,
    recall: Annotated[float, typer.Option("--recall", help="Least recall of a recommended index.")] = 0.95,
    rows: Annotated[
        Path | None,
        typer.Option("--rows", help="Rows that the recommendation rests on.", show_default="those of the package"),
    ] = None,
    out: OutOption = Path("bench-results"),
    work: WorkOption = None,
    run: RunOption = 1,
    quiet: QuietOption = False,
) -> None:
    """Measure FAISS indexes over a matrix: recall, speed, size, memory. Killed and started again, it goes on."""
    if recommend:
        from grace_benchmarks.cli.recommend import print_recommendation

        print_recommendation(whole(n, "--n"), dim, memory=memory, recall=recall, rows=rows)
        return
    from grace_benchmarks.running import run_ann_part, with_run
    from grace_benchmarks.suites import load_suite

    if suite is not None:
        if vectors is not None or factory:
            raise InputError("--suite says what is measured: leave out --vectors and --factory.")
        part = load_suite(suite, scale=scale).ann
        if part is None:
            raise InputError(f"The suite {suite!r} measures no indexes.")
        part = with_run(part, run, threads)
    else:
        part = _part(
            vectors,
            column,
            queries,
            truth,
            metric,
            whole(n, "--n"),
            dim,
            seed,
            factory or [],
            search or [],
            shard_rows,
            skip_bad,
            {"k": k, "repeats": repeats, "threads": threads or 1, "build_threads": build_threads, "run": run},
        )
    rows_said = NewRows(quiet=quiet)
    finished = run_ann_part(part, out, work=work, say=rows_said)
    rows_said.said(finished, out / "ann.jsonl")


def _part(
    vectors: Path | None,
    column: str,
    queries: str | None,
    truth: Path | None,
    metric: str | None,
    n: int,
    dim: int,
    seed: int,
    factories: list[str],
    search: list[str],
    shard_rows: int,
    skip_bad: bool,
    options: dict[str, int],
) -> AnnPart:
    from grace_benchmarks.ann.generate import GeneratedVectors
    from grace_benchmarks.ann.plan import AnnOptions, IndexSpec, default_indexes
    from grace_benchmarks.ann.sources import StoredVectors
    from grace_benchmarks.suites import AnnPart, VectorSource
    from grace_retrieval.corpus.matrices.matrix import Metric
    from grace_retrieval.corpus.vectors import has_queries

    if search and not factories:
        raise InputError(f"--search {search[0]} is of no --factory: name the index it is for.")
    held: Path | int = 1000
    if queries is not None:
        held = whole(queries, "--queries") if queries.replace(".", "").isdigit() else Path(queries)
    elif vectors is not None and has_queries(vectors):
        held, truth = vectors, truth or vectors
    if vectors is None and isinstance(held, Path):
        raise InputError("--queries FILE goes with --vectors: made-up vectors bring their own queries.")
    if vectors is None and (truth is not None or metric is not None):
        name = "--truth" if truth is not None else "--metric"
        raise InputError(f"{name} goes with --vectors: made-up vectors are searched by the cosine.")
    source = (
        GeneratedVectors(n=n, dim=dim, seed=seed, queries=held if isinstance(held, int) else 1)
        if vectors is None
        else StoredVectors(path=vectors, column=column)
    )
    if metric not in (None, *get_args(Metric)):
        raise InputError(f"--metric {metric}: give one of {', '.join(get_args(Metric))}.")
    indexes = [IndexSpec(factory=name, search=search or ("",), shard_rows=shard_rows) for name in factories]
    return AnnPart(
        vectors=(
            VectorSource(
                source=source, queries=held, skip_bad=skip_bad, metric=cast("Metric | None", metric), truth=truth
            ),
        ),
        indexes=tuple(indexes or default_indexes()),
        options=AnnOptions(seed=seed, **options),
    )
