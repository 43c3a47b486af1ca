"""Runs the parts of a suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from grace_benchmarks.checks import (
    check_ann,
    check_encode,
    check_retrieval,
    encode_options,
    found_collection,
    retrieval_options,
)
from grace_benchmarks.record import Row, RowFile, row_key
from grace_benchmarks.suites import AnnPart, EncodePart, RetrievalPart
from grace_retrieval.errors import InputError

__all__ = ["check_ann_part", "run_ann_part", "run_encode_part", "run_retrieval_part", "with_run"]

Say = Callable[[Row], None]


def check_ann_part(part: AnnPart, out: Path, *, work: Path | None = None) -> None:
    """Check a measurement of indexes; see `check_ann`.

    Args:
        part: What to measure.
        out: Folder of the rows.
        work: Folder of vectors and ground truth; None is `work_folder()`.
    """
    from grace_benchmarks.ann.vectors import work_folder

    check_ann(part, out, work or work_folder())


def run_ann_part(part: AnnPart, out: Path, *, work: Path | None = None, say: Say = lambda row: None) -> int:
    """Measure indexes; rows go to `out`/ann.jsonl.

    Args:
        part: What to measure.
        out: Folder of the rows.
        work: Folder of vectors and ground truth; None is `work_folder()`.
        say: Called with every new row.

    Returns:
        How many rows were there already.

    Raises:
        InputError: If what can be known of it beforehand is wrong; see `check_ann`.
        MissingExtraError: If FAISS is not installed.
    """
    from grace_benchmarks.ann.run import run_ann
    from grace_benchmarks.ann.vectors import prepare, work_folder

    work = work or work_folder()
    check_ann(part, out, work)
    rows, finished = RowFile(out / "ann.jsonl"), 0
    for item in part.vectors:
        vectors = prepare(
            item.source,
            work=work,
            queries=item.queries,
            seed=part.options.seed,
            skip_bad=item.skip_bad,
            metric=item.metric,
            truth=item.truth,
        )
        finished += run_ann(vectors, part.indexes, part.options, out=rows, work=work, say=say)
    return finished


def run_retrieval_part(
    part: RetrievalPart,
    out: Path,
    *,
    data: Path | None = None,
    runs: Path | None = None,
    scored: Sequence[Path] = (),
    say: Say = lambda row: None,
    **chosen: Any,
) -> int:
    """Measure retrieval; rows go to `out`/retrieval.jsonl.

    Args:
        part: What to measure.
        out: Folder of the rows.
        data: Folder in which relative collections are looked for.
        runs: Folder for the run files of TREC of what is measured.
        scored: Run files of other systems, which are scored over the one collection before anything is measured.
        say: Called with every new row.
        **chosen: As of `retrieval_options`: cache, device, run, engine, engine_options.

    Returns:
        How many rows were there already.

    Raises:
        InputError: If what can be known of it beforehand is wrong (see `check_retrieval`), or runs are to be scored
            over several collections.
        MissingExtraError: If the extra is not installed.
    """
    options = retrieval_options(part, **chosen)
    check_retrieval(part, out, data=data, runs=runs, scored=scored, **chosen)
    from grace_benchmarks.retrieval.collection import (
        Pairs,
        load_beir,
        load_files,
        load_judgements,
        load_pairs,
        load_task,
    )
    from grace_benchmarks.retrieval.run import run_retrieval
    from grace_benchmarks.retrieval.runs import score_runs
    from grace_benchmarks.retrieval.tasks import is_collection, run_tasks, tasks_by_name

    tasks = tasks_by_name(part.tasks) if part.tasks else []
    collections = [load_pairs(Pairs(**pairs)) for pairs in part.pairs]
    collections += [load_beir(found_collection(folder, data), part.split) for folder in part.data]
    collections += [
        load_files(files["documents"], files["queries"], Path(files["qrels"]))
        if "documents" in files
        else load_judgements(Path(files["qrels"]))
        for files in part.files
    ]
    others = [task for task in tasks if not is_collection(task)]
    if not collections and not tasks:
        raise InputError("Nothing to search: give data, pairs or tasks.")
    rows = RowFile(out / "retrieval.jsonl")
    for task in filter(is_collection, tasks):
        try:
            collections.append(load_task(task))
        except InputError as error:  # one task that cannot be had is no reason to miss the others
            row = {
                "kind": "task",
                "task": task.metadata.name,
                "status": "failed",
                "failed": str(error),
                "run": options.run,
            }
            if row_key(row) not in rows:
                say(rows.append({"key": row_key(row), **row}))
    finished = 0
    if scored:
        if len(collections) != 1:
            raise InputError(
                f"Runs are scored over one collection, and {len(collections)} are given: give one of them."
            )
        finished += score_runs(scored, collections[0], options, out=rows, say=say)
    if collections and part.columns:
        finished += run_retrieval(collections, options, out=rows, runs=runs, say=say)
    return finished + (run_tasks(others, options, out=rows, say=say) if others else 0)


def run_encode_part(
    part: EncodePart,
    out: Path,
    *,
    data: Path | None = None,
    device: str | None = None,
    run: int = 1,
    say: Say = lambda row: None,
) -> int:
    """Measure throughput; rows go to `out`/encode.jsonl.

    Args:
        part: What to measure. Without `data` its texts are the bundled passages, again and again with a number in
            front, so that all differ.
        out: Folder of the rows.
        data: Folder in which a relative collection is looked for.
        device: Such as "cuda".
        run: Number of the run.
        say: Called with every new row.

    Returns:
        How many rows were there already.

    Raises:
        InputError: If what can be known of it beforehand is wrong; see `check_encode`.
        ModelLoadError: If there is no such model.
    """
    options = encode_options(part, device=device, run=run)
    check_encode(part, out, data=data, device=device)
    from grace_benchmarks.encode.run import run_encode
    from grace_benchmarks.retrieval.collection import Pairs, load_beir, load_pairs

    if part.data is not None:
        texts = list(load_beir(found_collection(part.data, data)).documents.values())
    else:
        passages = list(load_pairs(Pairs(path="demo")).documents.values())
        texts = [f"Note {i}. {passages[i % len(passages)]}" for i in range(part.texts)]
    return run_encode(texts, options, out=RowFile(out / "encode.jsonl"), say=say)


def with_run(part: AnnPart, run: int, threads: int | None) -> AnnPart:
    """A part with another number of run, and threads if they are given."""
    options = replace(part.options, run=run)
    return replace(part, options=replace(options, threads=threads) if threads else options)
