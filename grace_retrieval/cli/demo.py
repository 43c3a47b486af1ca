"""`grace demo`: a small search from beginning to end, on passages that ship with the package (CC0)."""

from __future__ import annotations

import json as json_library
import time
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from grace_retrieval.bundled import DEFAULT_MODEL
from grace_retrieval.cli.console import print_indented, print_json, result_console, status
from grace_retrieval.cli.options import CacheOption, EngineOption, EngineOptionsOption, JsonOption, ModelOption

if TYPE_CHECKING:
    from grace_retrieval.embedder import GraceEmbedder
    from grace_retrieval.rationale import Rationale

__all__ = ["demo"]

QUERIES = (
    "how does yeast make bread rise",
    "bacteria that survive medicine",
    "Why are there two high tides a day?",
)
HITS = 3
SHOWN_CHARACTERS = 240


@dataclass(frozen=True, kw_only=True)
class _Hit:
    """A passage that was found."""

    id: str
    title: str
    score: float
    rationale: Rationale


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """A query with what was found, best first."""

    query: str
    rationale: Rationale
    hits: list[_Hit]


def demo(
    model: ModelOption = DEFAULT_MODEL,
    cache: CacheOption = "default",
    engine: EngineOption = "transformers",
    engine_option: EngineOptionsOption = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Write all rationales anew and keep none.")] = False,
    json: JsonOption = False,
) -> None:
    """Search a few passages, and see what the model wrote about them."""
    from grace_retrieval.cli.loading import load_embedder, open_command_cache

    started = time.monotonic()
    passages = _passages()
    opened = open_command_cache("none" if no_cache else cache)
    embedder = load_embedder(model, cache=opened, engine=engine, engine_options=engine_option)
    loaded = time.monotonic()
    with status(f"Embedding {len(passages)} passages and {len(QUERIES)} queries ..."):
        answers = _search(embedder, passages)
    opened.close()
    ended = time.monotonic()
    facts = {
        "texts_embedded": len(passages) + len(QUERIES),
        "rationales_generated": embedder.pipeline.counts["generated"],
        "rationales_from_cache": embedder.pipeline.counts["found"],
        "seconds": round(ended - started, 2),
        "seconds_loading": round(loaded - started, 2),
    }
    if json:
        print_json({"model": model, "answers": [_as_json(answer, model) for answer in answers], **facts})
        return
    console = result_console()
    console.print(Text(f"{len(passages)} passages, {len(QUERIES)} queries, model {model}"))
    for answer in answers:
        _show(console, answer)
    _show_facts(console, facts, model)


def _passages() -> list[dict[str, str]]:
    lines = files("grace_retrieval").joinpath("data", "demo.jsonl").read_text(encoding="utf-8")
    return [json_library.loads(line) for line in lines.splitlines()]


def _search(embedder: GraceEmbedder, passages: list[dict[str, str]]) -> list[_Answer]:
    texts = [f"{passage['title']}\n\n{passage['text']}" for passage in passages]
    documents = embedder.encode_with_rationales(texts, "document")
    queries = embedder.encode_with_rationales(QUERIES, "query")
    answers = []
    for query, written, vector in zip(QUERIES, queries.rationales, queries.vectors, strict=True):
        scores = documents.vectors @ vector  # vectors have length 1: this is the cosine
        best = scores.argsort()[::-1][:HITS]
        hits = [
            _Hit(
                id=passages[place]["id"],
                title=passages[place]["title"],
                score=float(scores[place]),
                rationale=documents.rationales[place],
            )
            for place in best
        ]
        answers.append(_Answer(query=query, rationale=written, hits=hits))
    return answers


def _as_json(answer: _Answer, model: str) -> dict[str, Any]:
    def described(rationale: Rationale) -> dict[str, Any]:
        return {
            "written_by": model,
            "reasoning": rationale.reasoning,
            "summary": rationale.summary,
            "truncated": rationale.truncated,
            "repeats": rationale.repeats,
        }

    return {
        "query": answer.query,
        "rationale": described(answer.rationale),
        "hits": [
            {
                "rank": rank,
                "id": hit.id,
                "title": hit.title,
                "score": round(hit.score, 6),
                "rationale": described(hit.rationale),
            }
            for rank, hit in enumerate(answer.hits, start=1)
        ],
    }


def _show(console: Console, answer: _Answer) -> None:
    console.print()
    console.print(Text.assemble(("Query  ", "bold cyan"), (answer.query, "bold")))
    _show_rationale(console, answer.rationale, indent=7)
    for rank, hit in enumerate(answer.hits, start=1):
        console.print()
        console.print(Text.assemble(f"{rank:>3}  ", (f"{hit.score:.3f}", "green"), (f"  {hit.title}", "bold")))
        _show_rationale(console, hit.rationale, indent=12)


def _show_rationale(console: Console, rationale: Rationale, *, indent: int) -> None:
    mark = ", and repeats itself" if rationale.repeats else ""
    print_indented(console, Text(f"written by the model{mark}", style="dim italic"), indent)
    for name, part in rationale.parts.items():
        shown = part if len(part) <= SHOWN_CHARACTERS else f"{part[:SHOWN_CHARACTERS]} …"
        print_indented(console, Text.assemble((f"{name}: ", "dim"), shown or "(none)"), indent)


def _show_facts(console: Console, facts: dict[str, Any], model: str) -> None:
    console.print()
    console.print(
        Text(
            f"{facts['texts_embedded']} texts embedded, {facts['rationales_generated']} rationales generated, "
            f"{facts['rationales_from_cache']} from the cache, in {facts['seconds']:.1f} s "
            f"({facts['seconds_loading']:.1f} s of it loading)."
        )
    )
    options = "" if model == DEFAULT_MODEL else f" --model {model}"
    console.print()
    console.print(Text("Next", style="bold"))
    for command, what in (
        (f"grace demo{options}", "again: the rationales come from the cache"),
        (f'grace rationale "Why is the sea salty?"{options}', "what the model writes about a text of yours"),
        (f"grace embed texts.jsonl vectors.parquet{options}", "vectors and rationales of a file"),
        ("grace cache stats", "what is kept, and where"),
    ):
        console.print(Text.assemble(f"  {command}\n", (f"      {what}", "dim")), soft_wrap=True)
