"""Tasks of mteb by name: retrieval goes the way of every collection, the other kinds through mteb's own evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from grace_benchmarks.record import Row, RowFile, measure, row_key
from grace_benchmarks.retrieval.costs import text_only
from grace_benchmarks.retrieval.names import Column, model_name
from grace_benchmarks.retrieval.rankers import open_model
from grace_benchmarks.retrieval.run import RetrievalOptions
from grace_retrieval.errors import InputError, MissingExtraError

__all__ = ["is_collection", "run_tasks", "tasks_by_name"]


def tasks_by_name(names: Sequence[str]) -> list[Any]:
    """Look tasks up in the installed mteb; nothing is downloaded.

    Args:
        names: Names of tasks.

    Raises:
        MissingExtraError: If mteb is not installed.
        InputError: If mteb has no task of a name.
    """
    try:
        import mteb
    except ModuleNotFoundError as error:
        raise MissingExtraError("mteb", "bench", "Running mteb tasks") from error
    tasks, unknown = [], []
    for name in names:
        try:
            tasks.append(mteb.get_task(name))
        except KeyError:
            unknown.append(name)
    if unknown:
        raise InputError(
            f"mteb {mteb.__version__} has no task {', '.join(unknown)}. `mteb available-tasks` lists them."
        )
    return tasks


def is_collection(task: Any) -> bool:
    """Whether a task is one collection of queries and documents (and not, say, twelve averaged)."""
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    return isinstance(task, AbsTaskRetrieval) and task.metadata.type == "Retrieval"


def run_tasks(
    tasks: Sequence[Any],
    options: RetrievalOptions,
    *,
    out: RowFile,
    say: Callable[[Row], None] = lambda row: None,
) -> int:
    """Evaluate tasks with mteb, one row a task, model and column ("text" or "rationale").

    Args:
        tasks: From `tasks_by_name`.
        options: How.
        out: Where rows go. A row that is there is not measured again.
        say: Called with every new row.

    Returns:
        How many rows were there already.
    """
    import mteb

    finished = 0
    for name in options.models:
        embedder: Any = None
        for task in tasks:
            for column in (c for c in options.columns if c in ("text", "rationale")):
                identity = _identity(task, name, column, options)
                key = row_key(identity)
                if key in out:
                    finished += 1
                    continue
                embedder = embedder or open_model(
                    name, cache=options.cache, device=options.device, **options.engine_identity
                )
                plain = column == "text" and hasattr(embedder, "writer")
                row: Row = {"key": key, **identity}
                with measure() as timing, text_only(embedder) if plain else nullcontext():
                    try:
                        result = mteb.evaluate(
                            embedder,
                            task,
                            cache=None,
                            overwrite_strategy="always",
                            show_progress_bar=False,
                            co2_tracker=False,
                        )
                        row |= {"status": "ok", "main_score": float(result.task_results[0].get_score())}
                    except Exception as error:  # whatever a task or the hub raises: the others go on
                        row |= {"status": "failed", "failed": f"{type(error).__name__}: {' '.join(str(error).split())}"}
                say(out.append({**row, "wall_seconds": round(timing.wall, 2)}))
    return finished


def _identity(task: Any, name: str, column: Column, options: RetrievalOptions) -> Row:
    return {
        "kind": "task",
        "task": task.metadata.name,
        "type": task.metadata.type,
        "revision": task.metadata.revision,
        "model": model_name(name),
        "column": column,
        "run": options.run,
    }
