"""Training pairs with rationales for grace-small, from collections that say of themselves what their texts are about.

    python -m grace_small.prepare ../shared/data OUT

Rationales are nowhere written by a model of ours: they are explanations of arXiv papers (by a language model, see the
data's README), titles of Wikipedia pages, and what MedQuAD says a question asks for. Held out are arXiv's dev and test
files, the last 500 rows of Natural Questions and every twentieth subject of MedQuAD.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import typer

__all__ = ["HELD_OUT", "is_held_out", "prepare"]

HELD_OUT = 500
"""Rows at the end of Natural Questions that are not trained on."""

ARXIV_PAPERS = 30_000
"""Papers, from the front of the first file: half are asked for by their title, half by what they say is missing."""

LONGEST = 220
"""Most characters of a rationale: longer explanations are left out with their papers."""

_ASKED = {
    "information": "What {} is",
    "genetic changes": "Genes that are related to {}",
    "exams and tests": "How {} is diagnosed",
    "considerations": "What to consider about {}",
    "frequency": "How common {} is",
    "inheritance": "Whether {} is inherited",
    "outlook": "Outlook for {}",
    "research": "Research on {}",
    "susceptibility": "Who is at risk of {}",
    "support groups": "Support for {}",
}

Pair = dict[str, str]


def is_held_out(focus: str) -> bool:
    """Whether a subject of MedQuAD is kept for development: one in twenty, by its name."""
    return zlib.crc32(focus.encode()) % 20 == 0


def _pair(query: str, positive: str, query_rationale: str, positive_rationale: str) -> Pair:
    return {
        "query": query,
        "positive": positive,
        "query_rationale": query_rationale,
        "positive_rationale": positive_rationale,
    }


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for batch in pq.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()


def arxiv(data: Path) -> tuple[list[Pair], list[Pair]]:
    """Abstracts by their titles, and by what they say is missing."""
    titles: list[Pair] = []
    problems: list[Pair] = []
    for number, row in enumerate(_rows(data / "arxiv" / "train-0.parquet")):
        if number == ARXIV_PAPERS:
            break
        said = {name: " ".join((row[name] or "").split()) for name in ("title", "abstract", "tldr", "motivation")}
        if not all(said.values()) or len(said["tldr"]) > LONGEST:
            continue
        if number % 2:
            problems.append(_pair(said["motivation"], said["abstract"], said["title"], said["tldr"]))
        else:
            titles.append(_pair(said["title"], said["abstract"], said["tldr"], said["tldr"]))
    return titles, problems


def questions(data: Path) -> list[Pair]:
    """Questions to a web search and paragraphs of Wikipedia that answer them; both are about the page's title."""
    rows = list(_rows(data / "pairs" / "nq.parquet"))[:-HELD_OUT]
    return [_pair(row["query"], row["positive"], f"{row['title']}.", f"{row['title']}.") for row in rows]


def medicine(data: Path) -> list[Pair]:
    """Medical questions and answers; both are about one aspect of one subject."""
    pairs: list[Pair] = []
    for row in _rows(data / "pairs" / "medquad.parquet"):
        if not is_held_out(row["focus"]):
            kind = row["qtype"]
            about = _ASKED.get(kind, f"{kind.capitalize()} of {{}}").format(row["focus"])
            pairs.append(_pair(row["query"], row["positive"], f"{about}.", f"{about}."))
    return pairs


def prepare(data: Path, out: Path) -> dict[str, int]:
    """Write the pairs of each source into a file.

    Args:
        data: Folder with arxiv and pairs.
        out: Folder for the files, which is made.

    Returns:
        Name of each file → its rows.
    """
    titles, problems = arxiv(data)
    sources = {
        "arxiv-titles": titles,
        "arxiv-problems": problems,
        "questions": questions(data),
        "medicine": medicine(data),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, pairs in sources.items():
        pq.write_table(pa.Table.from_pylist(pairs), out / f"{name}.parquet")
    return {name: len(pairs) for name, pairs in sources.items()}


def main(
    data: Annotated[Path, typer.Argument(help="Folder with arxiv and pairs.")],
    out: Annotated[Path, typer.Argument(help="Folder for the pairs.")],
) -> None:
    """Write the training pairs of grace-small."""
    for name, rows in prepare(data, out).items():
        typer.echo(f"{name:16} {rows:6}")


if __name__ == "__main__":
    typer.run(main)
