"""What `grace index build` and `add` say: an estimate before, and what was done after."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.filesize import decimal

from grace_retrieval.cli.console import error_console, print_json
from grace_retrieval.cli.progress import duration

if TYPE_CHECKING:
    from grace_retrieval.indexing.build import BuildSummary
    from grace_retrieval.indexing.choose import IndexChoice
    from grace_retrieval.indexing.encoders import EmbedderEncoder, GivenVectors
    from grace_retrieval.indexing.estimate import BuildEstimate

__all__ = ["print_build", "print_estimate"]

_NOTES = {
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
    "rationales_cut_off": "rationales were cut off before their end",
}


def print_estimate(found: BuildEstimate, choice: IndexChoice, *, skipped: int, json: bool) -> None:
    """Print what a build would cost.

    Args:
        found: The estimate.
        choice: The FAISS index that would be built.
        skipped: Number of bad rows.
        json: Whether to print a JSON document.
    """
    if json:
        print_json({**asdict(found), "factory": choice.factory, "index_bytes": choice.bytes, "skipped": skipped})
        return
    lines = [
        f"{found.documents:,} documents, {found.tokens:,} tokens with the prompt; {found.shortened:,} are longer than "
        "the model takes.",
        f"{found.cached:,} rationales are in the cache, {found.generations:,} are to be generated: about "
        f"{found.new_tokens:,} tokens, at most {found.most_new_tokens:,}.",
        f"Disk: about {decimal(found.disk_bytes)}. FAISS: {choice.factory}. {choice.explanation}",
    ]
    if found.seconds is not None:
        lines.append(
            f"Time on this machine: about {duration(found.seconds)}, by a sample of {found.sample} documents (now in "
            "the cache)."
        )
    for line in lines:
        typer.echo(line)


def print_build(
    summary: BuildSummary,
    encoder: EmbedderEncoder | GivenVectors,
    out: Path,
    *,
    skipped: int,
    seconds: float,
    json: bool,
    quiet: bool,
) -> None:
    """Print what a build did.

    Args:
        summary: What it did.
        encoder: What made the rows.
        out: Folder of the index.
        skipped: Number of bad rows.
        seconds: How long it took.
        json: Whether to print a JSON document.
        quiet: Whether to print warnings only.
    """
    manifest, twice = summary.manifest, summary.duplicates
    shortened = sum(shard.text_truncated for shard in manifest.shards)
    counts = {
        "added": summary.added,
        "resumed": summary.resumed,
        "replaced": len(twice.replaced),
        "unchanged": twice.unchanged,
        "repeated": twice.repeated,
        "clashing_ids": twice.clashing_ids,
        "equal_texts": twice.equal_texts,
        "skipped": skipped,
        "blank": sum(len(shard.blank) for shard in manifest.shards),
        "generated": encoder.counts["generated"],
        "from_cache": encoder.counts["found"],
        "rationales_cut_off": sum(shard.truncated for shard in manifest.shards),
        "texts_shortened": shortened,
    }
    if json:
        print_json(
            {
                "index": str(out),
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
    if quiet:
        return
    typer.echo(
        f"{out} holds {manifest.rows:,} documents of {manifest.dimension} dimensions, after {seconds:.1f} s: "
        f"{summary.added:,} came in."
    )
    if notes := [f"{counts[name]:,} {what}" for name, what in _NOTES.items() if counts[name]]:
        typer.echo(f"{'; '.join(notes)}.")
    typer.echo(f"FAISS: {manifest.faiss.factory}. {manifest.faiss.explanation}")
