"""What a model writes about twenty held-out texts by fixed index, and how many of its rationales end, for the card.

python -m grace_small.examples ../shared/data --model grace-small
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as pq
import typer

from grace_retrieval import GraceEmbedder
from grace_retrieval.rows import Role
from grace_small.prepare import HELD_OUT

__all__ = ["held_out"]

SHOWN = 10
"""Documents, and queries, that are shown; ten times as many are counted."""

WIDTH = 90
"""Characters of a text that are shown."""


def held_out(data: Path) -> tuple[list[str], list[str]]:
    """A hundred documents and a hundred queries: every twentieth of arXiv's dev file, every fifth held-out question."""
    abstracts = pq.read_table(data / "arxiv" / "dev.parquet", columns=["abstract"])["abstract"].to_pylist()
    questions = pq.read_table(data / "pairs" / "nq.parquet", columns=["query"])["query"].to_pylist()[-HELD_OUT:]
    return abstracts[::20], questions[:: HELD_OUT // 100]


def main(
    data: Annotated[Path, typer.Argument(help="Folder with arxiv and pairs.")],
    model: Annotated[str, typer.Option(help="Model.")] = "grace-small",
) -> None:
    """Print a table of rationales, and the share that ended."""
    embedder = GraceEmbedder(model, cache=None, on_truncation="ignore")
    typer.echo("| | text | rationale |\n|---|---|---|")
    ended: dict[Role, Any] = {}
    documents, queries = held_out(data)
    texts_of: dict[Role, list[str]] = {"document": documents, "query": queries}
    for role, texts in texts_of.items():
        rows = embedder.rationales(texts, role)
        ended[role] = sum(not row.truncated for row in rows), sum(len(row.token_ids) for row in rows) / len(rows)
        for text, row in list(zip(texts, rows, strict=True))[:: len(texts) // SHOWN]:
            shown = " ".join(text.split())
            cut = shown if len(shown) <= WIDTH else shown[:WIDTH].rsplit(" ", 1)[0] + " …"
            typer.echo(f"| {role} | {cut.replace('|', '/')} | {row.text.replace('|', '/')} |")
    for role, (count, tokens) in ended.items():
        typer.echo(f"\n{count} of 100 {role} rationales ended by themselves, {tokens:.1f} tokens on average.")


if __name__ == "__main__":
    typer.run(main)
