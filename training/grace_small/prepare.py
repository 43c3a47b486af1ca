"""Training pairs with rationales for grace-small, from collections that say of themselves what their texts are about.

    python -m grace_small.prepare ../shared/data OUT

Rationales are nowhere written by a model: they are titles of papers, Wikipedia pages and textbook sections, and what
MedQuAD says a question asks for. Where the query is a title itself there is none. Papers are one file a field, so that
batches of one source are hard to tell apart. Held out are arXiv's dev and test files, the last 500 rows of Natural
Questions (22 of their paragraphs answer a question that is trained on as well) and every twentieth subject of MedQuAD.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import typer

__all__ = ["HELD_OUT", "PAIRS", "is_held_out", "prepare"]

HELD_OUT = 500
"""Rows at the end of Natural Questions that are not trained on, and pairs of each file for development."""

PAIRS = {
    "arxiv-vision": 1_800,
    "arxiv-language": 1_800,
    "arxiv-learning": 1_800,
    "arxiv-engineering": 1_800,
    "arxiv-nature": 3_600,
    "arxiv-mathematics": 1_200,
    "questions": 4_200,
    "medicine": 4_200,
    "textbook": 2_400,
    "glossary": 1_200,
}
"""Pairs of each file; a pair of these is as likely as any other."""

_FIELDS = {
    "vision": ("cs.CV", "cs.GR", "cs.MM", "eess.IV"),
    "language": ("cs.CL", "cs.IR", "cs.SD", "eess.AS"),
    "learning": ("cs.LG", "cs.AI", "cs.NE", "stat.", "cs.MA"),
    "engineering": ("cs.RO", "eess.", "cs.SY", "cs.HC", "cs.CR", "cs.DC", "cs.NI", "cs.AR", "cs.SE"),
    "nature": ("physics.", "q-bio.", "cond-mat", "astro-ph", "quant-ph", "hep-", "gr-qc", "nlin.", "nucl-"),
    "mathematics": ("math.", "math-ph", "cs.DS", "cs.CC", "cs.IT", "cs.LO", "q-fin.", "econ."),
}
"""Beginnings of the first category of a paper."""

_PARAGRAPH = 250
"""Fewest characters of a paragraph."""

_SEED = 1

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

Pair = dict[str, str | None]


def is_held_out(focus: str) -> bool:
    """Whether a subject of MedQuAD is kept for development: one in twenty, by its name."""
    return zlib.crc32(focus.encode()) % 20 == 0


def _pair(query: str, positive: str, query_rationale: str | None, positive_rationale: str | None) -> Pair:
    return {
        "query": query,
        "positive": positive,
        "query_rationale": query_rationale,
        "positive_rationale": positive_rationale,
    }


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for batch in pq.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()


def _sentence(title: str) -> str:
    return title if title[-1] in ".?!" else f"{title}."


def arxiv(data: Path) -> dict[str, list[Pair]]:
    """Abstracts by their titles, and, with the title as rationale, by what they say is missing; by field."""
    fields: dict[str, list[Pair]] = {f"arxiv-{name}": [] for name in _FIELDS}
    for file in range(4):
        for row in _rows(data / "arxiv" / f"train-{file}.parquet"):
            category = row["categories"].split()[0]
            field = next((name for name, starts in _FIELDS.items() if category.startswith(starts)), None)
            said = {name: " ".join((row[name] or "").split()) for name in ("title", "abstract", "motivation")}
            if field is None or not all(said.values()):
                continue
            pairs = fields[f"arxiv-{field}"]
            if len(pairs) % 2:
                title = _sentence(said["title"])
                pairs.append(_pair(said["motivation"], said["abstract"], title, title))
            else:
                pairs.append(_pair(said["title"], said["abstract"], None, None))
    return fields


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


def textbook(data: Path) -> list[Pair]:
    """Paragraphs of a section: two that follow each other; both are about the section's title."""
    pairs: list[Pair] = []
    for row in _rows(data / "text" / "openstax_sections.parquet"):
        paragraphs = [text.strip() for text in row["text"].split("\n\n")]
        paragraphs = [text for text in paragraphs if len(text) >= _PARAGRAPH and text[0] not in "#|-*!"]
        title = _sentence(row["title"])
        pairs += [_pair(*pair, title, title) for pair in zip(paragraphs[::2], paragraphs[1::2], strict=False)]
    return pairs


def glossary(data: Path) -> list[Pair]:
    """Terms and their definitions."""
    rows = _rows(data / "pairs" / "openstax_glossary.parquet")
    return [_pair(row["term"], row["definition"], None, None) for row in rows]


def held_out(data: Path) -> dict[str, list[Pair]]:
    """Pairs for development: titles and abstracts of arXiv's dev file, and the held-out questions."""
    papers = list(_rows(data / "arxiv" / "dev.parquet"))[:HELD_OUT]
    asked = list(_rows(data / "pairs" / "nq.parquet"))[-HELD_OUT:]
    return {
        "held-out-papers": [_pair(row["title"], row["abstract"], None, None) for row in papers],
        "held-out-questions": [_pair(row["query"], row["positive"], None, None) for row in asked],
    }


def prepare(data: Path, out: Path) -> dict[str, int]:
    """Write the pairs of each source into a file, and those for development.

    Args:
        data: Folder with arxiv, pairs and text.
        out: Folder for the files, which is made.

    Returns:
        Name of each file → its rows.
    """
    sources = {
        **arxiv(data),
        "questions": questions(data),
        "medicine": medicine(data),
        "textbook": textbook(data),
        "glossary": glossary(data),
        **held_out(data),
    }
    schema = pa.schema([(name, pa.string()) for name in _pair("", "", "", "")])
    out.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name, pairs in sources.items():
        drawn = random.Random(_SEED).sample(pairs, min(PAIRS.get(name, HELD_OUT), len(pairs)))
        pq.write_table(pa.Table.from_pylist(drawn, schema=schema), out / f"{name}.parquet")
        counts[name] = len(drawn)
    return counts


def main(
    data: Annotated[Path, typer.Argument(help="Folder with arxiv, pairs and text.")],
    out: Annotated[Path, typer.Argument(help="Folder for the pairs.")],
) -> None:
    """Write the training pairs of grace-small."""
    for name, rows in prepare(data, out).items():
        typer.echo(f"{name:18} {rows:6}")


if __name__ == "__main__":
    typer.run(main)
