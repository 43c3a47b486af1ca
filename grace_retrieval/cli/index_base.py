"""What an index that is added to has settled: its columns, where its ids come from, how its vectors are made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from grace_retrieval.cli.console import error_console
from grace_retrieval.errors import InputError

if TYPE_CHECKING:
    from grace_retrieval.corpus.corpus import Corpus
    from grace_retrieval.indexing.build import Mode
    from grace_retrieval.indexing.manifest import IndexManifest

__all__ = ["build_mode", "built_with", "check_same", "given_columns", "warn_of_ids"]


def check_same(out: Path, base: IndexManifest, *, no_rationale: bool, given: dict[str, int | None]) -> None:
    """Refuse options that an index which is added to has settled."""
    if settled := [name for name, value in given.items() if value is not None]:
        raise InputError(f"{out} is added to as it was built: leave out {' and '.join(settled)}.")
    if no_rationale and base.rationale:
        raise InputError(f"{out} was built with rationales: leave out --no-rationale, or build another index.")


def built_with(base: IndexManifest | None) -> dict[str, Any]:
    """The columns that an index was built with."""
    remembered = dict(base.columns or {}) if base is not None else {}
    remembered.pop("ids", None)
    if remembered.get("metadata") is not None:
        remembered["metadata"] = tuple(remembered["metadata"])
    return remembered


def given_columns(text: str | None, id: str | None, title: str | None, metadata: list[str] | None) -> dict[str, Any]:
    """The columns that were given."""
    given = {"text": text, "id": id, "title": title, "metadata": None if metadata is None else tuple(metadata)}
    return {name: value or None for name, value in given.items() if value is not None}


def warn_of_ids(out: Path, base: IndexManifest | None, corpus: Corpus) -> None:
    """Say where ids come from another place than those of the index: what is there already would come in again."""
    known, new = set((base.columns or {}).get("ids", ()) if base else ()), set(corpus.described()["ids"])
    if known and new - known:
        error_console().print(
            f"Warning: the ids of {out} came from {' and '.join(sorted(known))}, and those of this input come from "
            f"{' and '.join(sorted(new))}: documents that are there already are not known again. Name the column of "
            "the ids with --id-column.",
            style="yellow",
        )


def build_mode(**wanted: bool) -> Mode:
    """Which way of building the options ask for."""
    modes = [name for name, given in wanted.items() if given]
    if len(modes) > 1 and modes != ["add", "update"]:
        raise InputError(f"--{' and --'.join(modes)} cannot go together: give one of them.")
    return cast("Mode", modes[-1] if modes else "new")
