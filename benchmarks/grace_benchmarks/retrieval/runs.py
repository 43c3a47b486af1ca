"""Run files of TREC: those of other systems are scored as ours are, and ours are written."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from grace_benchmarks.record import Row, RowFile, row_key
from grace_benchmarks.retrieval.collection import Collection
from grace_benchmarks.retrieval.metrics import Ranking, against, per_query, summary
from grace_benchmarks.retrieval.run import RetrievalOptions
from grace_retrieval.corpus.runs import read_run
from grace_retrieval.errors import InputError

__all__ = ["score_runs"]


def score_runs(
    paths: Sequence[Path],
    collection: Collection,
    options: RetrievalOptions,
    *,
    out: RowFile,
    say: Callable[[Row], None] = lambda row: None,
) -> int:
    """Score runs of any system over a collection, a row each.

    A query that a run has nothing for counts as 0, as in trec_eval with -c.

    Args:
        paths: Files of TREC; see `read_run`.
        collection: What was searched.
        options: The number of the run, and the seed of permutation tests.
        out: Where rows go. A row that is there is not made again.
        say: Called with every new row.

    Returns:
        How many rows were there already.

    Raises:
        InputError: If a file cannot be read, or none of its queries is judged.
    """
    finished = 0
    data = collection.describe()
    for path in paths:
        run = read_run(path, collection.queries)
        if not run.scores:
            raise InputError(
                f"{path}: none of its {run.queries:,} queries is judged in {collection.name}. Give the run of this "
                "collection, with its ids."
            )
        identity: Row = {
            "kind": "retrieval",
            "model": run.tag,
            "column": "run",
            "max_new_tokens": None,
            "threads": options.threads,
            "seed": options.seed,
            "run": options.run,
            "run_digest": _digest(run.scores),
        }
        key = row_key({**identity, "digest": data["digest"]})
        if key in out:
            finished += 1
            continue
        missing = [query for query in collection.queries if query not in run.scores]
        if missing:
            warnings.warn(
                f"{path}: nothing for {len(missing):,} of {len(collection.queries):,} judged queries (e.g. "
                f"{missing[0]!r}), which count as 0.",
                stacklevel=2,
            )
        values = per_query(collection, run.scores)
        say(
            out.append(
                {
                    "key": key,
                    **identity,
                    "status": "ok",
                    "run_file": path.name,
                    "queries_without_hits": len(missing),
                    "data": data,
                    **summary(values),
                    "against": against(out, values, data["digest"], run=options.run, seed=options.seed),
                    "per_query": values,
                }
            )
        )
    return finished


def _digest(ranking: Ranking) -> str:
    """Hash of scores, whatever the order of the lines."""
    lines = sorted(f"{query}\t{name}\t{score!r}" for query, found in ranking.items() for name, score in found.items())
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()
