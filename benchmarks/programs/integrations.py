"""What do LangChain, LlamaIndex, Haystack and Chroma cost on top of the core?

    PYTHONPATH=benchmarks python -m programs.integrations

All faces hand the same texts to one embedder. Each repeat measures every face once, in an order that rotates, and
ratios are taken within a repeat: a face's seconds to those of `embedder.embed_documents`. Cold means an empty cache,
warm that every rationale is in it. Then 200 queries are asked at the same time, and the calls of the engine counted.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")
os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")

import typer
from haystack import Document
from rich.console import Console

import chroma_grace
import haystack_integrations.components.embedders.grace as haystack_grace
import langchain_grace
import llama_index.embeddings.grace as llama_index_grace
from grace_benchmarks.record import Timing, measure, write_result
from grace_retrieval import GraceEmbedder, RationaleRequest, SamplingOptions
from grace_retrieval.threads import hold_torch
from programs.cache import build_texts

CORE = "core"
Way = Callable[[list[str]], Any]


def build_ways(embedder: GraceEmbedder, loop: asyncio.AbstractEventLoop) -> tuple[dict[str, Way], dict[str, Any]]:
    """Ways to embed documents, and asynchronous ways to embed a query."""
    langchain = langchain_grace.GraceEmbeddings(model=embedder)
    llama_index = llama_index_grace.GraceEmbedding(model_name=embedder)
    haystack = haystack_grace.GraceDocumentEmbedder(embedder)
    haystack_query = haystack_grace.GraceTextEmbedder(embedder)
    chroma = chroma_grace.GraceEmbeddingFunction(embedder)

    def wait(call: Callable[[list[str]], Any]) -> Way:
        return lambda texts: loop.run_until_complete(call(texts))

    def documents(texts: list[str]) -> list[Document]:
        return [Document(content=text) for text in texts]

    ways: dict[str, Way] = {
        CORE: embedder.embed_documents,
        "core, async": wait(embedder.aembed_documents),
        "langchain": langchain.embed_documents,
        "langchain, async": wait(langchain.aembed_documents),
        "llama-index": llama_index.get_text_embedding_batch,
        "llama-index, async": wait(llama_index.aget_text_embedding_batch),
        "haystack": lambda texts: haystack.run(documents(texts)),
        "haystack, async": wait(lambda texts: haystack.run_async(documents(texts))),
        "chroma": lambda texts: chroma(texts),
    }
    queries = {
        CORE: embedder.aembed_query,
        "langchain": langchain.aembed_query,
        "llama-index": llama_index.aget_query_embedding,
        "haystack": haystack_query.run_async,
    }
    return ways, queries


def compare(
    ways: Mapping[str, Way], texts: list[str], repeats: int, before: Callable[[], object]
) -> dict[str, list[Timing]]:
    """Time each way once a repeat, in an order that rotates; `before` runs before each."""
    names = list(ways)
    timings: dict[str, list[Timing]] = {name: [] for name in names}
    for repeat in range(repeats):
        start = repeat % len(names)
        for name in names[start:] + names[:start]:
            before()
            with measure() as timing:
                ways[name](texts)
            timings[name].append(timing)
    return timings


def ratio_rows(state: str, texts: int, timings: Mapping[str, Sequence[Timing]]) -> list[dict[str, Any]]:
    """One row a way: seconds, and ratios to the core within each repeat."""
    rows = []
    for name, own in timings.items():
        wall = [timing.wall / core.wall for timing, core in zip(own, timings[CORE], strict=True)]
        cpu = [timing.cpu / core.cpu for timing, core in zip(own, timings[CORE], strict=True)]
        row: dict[str, Any] = {
            "cache": state,
            "face": name,
            "texts": texts,
            "repeats": len(own),
            "seconds": round(statistics.median(timing.wall for timing in own), 4),
            "time_to_core": round(statistics.median(wall), 3),
            "time_to_core_spread": [round(min(wall), 3), round(max(wall), 3)],
            "cpu_to_core": round(statistics.median(cpu), 3),
        }
        if name.endswith(", async"):
            sync = timings[name.removesuffix(", async")]
            speeds = [one.wall / other.wall for one, other in zip(sync, own, strict=True)]
            row["speed_to_sync"] = round(statistics.median(speeds), 3)
            row["speed_to_sync_spread"] = [round(min(speeds), 3), round(max(speeds), 3)]
        rows.append(row)
    return rows


@contextmanager
def counted_calls(embedder: GraceEmbedder) -> Iterator[list[int]]:
    """Numbers of texts in the calls of the engine."""
    engine: Any = embedder.writer.engine
    calls: list[int] = []
    run = engine.run

    def counting(requests: Sequence[RationaleRequest], sampling: SamplingOptions | None = None) -> Any:
        calls.append(len(requests))
        return run(requests, sampling)

    engine.run = counting
    try:
        yield calls
    finally:
        del engine.run


def ask_together(
    embedder: GraceEmbedder, asks: Mapping[str, Any], loop: asyncio.AbstractEventLoop, count: int, one_by_one: int
) -> list[dict[str, Any]]:
    """Queries that are asked at the same time, and a few that are asked one by one."""
    queries = build_texts(count)
    rows = []
    for name, ask in asks.items():
        if embedder.cache is not None:
            embedder.cache.clear()

        async def together(ask: Any = ask) -> None:
            await asyncio.gather(*(ask(query) for query in queries))

        with counted_calls(embedder) as calls, measure() as timing:
            loop.run_until_complete(together())
        rows.append(
            {
                "cache": "cold",
                "face": f"{name}, {count} queries at the same time",
                "engine_calls": len(calls),
                "texts_by_call": calls,
                "seconds": round(timing.wall, 3),
                "seconds_a_query": round(timing.wall / count, 4),
            }
        )
    if embedder.cache is not None:
        embedder.cache.clear()
    with measure() as timing:
        for query in queries[:one_by_one]:
            embedder.embed_query(query)
    rows.append(
        {
            "cache": "cold",
            "face": f"{CORE}, queries one by one",
            "engine_calls": one_by_one,
            "seconds": round(timing.wall, 3),
            "seconds_a_query": round(timing.wall / one_by_one, 4),
        }
    )
    return rows


def count_lines() -> list[dict[str, Any]]:
    """Lines of each shim, documentation included."""
    packages = {
        "langchain": langchain_grace,
        "llama-index": llama_index_grace,
        "haystack": haystack_grace,
        "chroma": chroma_grace,
    }
    rows = []
    for name, package in packages.items():
        files = sorted(Path(str(package.__file__)).parent.glob("*.py"))
        lines = {file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
        rows.append({"face": name, "lines": sum(lines.values()), "lines_by_file": lines})
    return rows


def main(
    cold_texts: Annotated[int, typer.Option(help="Texts that are embedded with an empty cache.")] = 64,
    warm_texts: Annotated[int, typer.Option(help="Texts that are found in the cache.")] = 512,
    cold_repeats: Annotated[int, typer.Option(help="Repeats with an empty cache.")] = 5,
    warm_repeats: Annotated[int, typer.Option(help="Repeats with a full cache.")] = 27,
    queries: Annotated[int, typer.Option(help="Queries asked at the same time.")] = 200,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 2,
) -> None:
    """Compare all faces with the core."""
    hold_torch(threads)
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory() as folder:
        embedder = GraceEmbedder("grace-nano", cache=Path(folder) / "rationales.sqlite")
        ways, asks = build_ways(embedder, loop)
        cache = embedder.cache
        if cache is None:
            raise RuntimeError("the embedder was made with a cache")
        corpus = build_texts(warm_texts)
        for way in ways.values():  # everything is loaded, every cache but ours is warm
            way(corpus[:4])
        cold = compare(ways, corpus[:cold_texts], cold_repeats, cache.clear)
        embedder.embed_documents(corpus)
        warm = compare(ways, corpus, warm_repeats, lambda: None)
        together = ask_together(embedder, asks, loop, queries, one_by_one=20)
        cache.close()
    loop.close()
    rows = [*ratio_rows("cold", cold_texts, cold), *ratio_rows("warm", warm_texts, warm), *together, *count_lines()]
    write_result("integrations", rows, threads=threads, cold_repeats=cold_repeats, warm_repeats=warm_repeats)
    for row in rows:
        Console(width=200).print(row)


if __name__ == "__main__":
    typer.run(main)
