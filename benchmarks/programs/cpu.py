"""What a CPU costs: this build against an earlier one, the pipeline anybody would write, and a bare forward pass.

    PYTHONPATH=benchmarks python -m programs.cpu MODEL --before ../before --texts abstracts.jsonl

MODEL is a folder in float32, so that a build that knows nothing else can read it (`grace fetch`, then GraceEmbedder
with dtype float32, makes one in the cache folder). Every row is a process of its own; nothing else should run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from grace_benchmarks.record import write_result

WAYS = ("this", "before", "straightforward", "bare", "query", "query before", "query llama-cpp")
BUDGET, QUERY_BUDGET, QUERIES = 48, 32, 100


def main(
    model: Annotated[str, typer.Argument(help="Folder of the policy in float32.")],
    texts: Annotated[Path, typer.Option(help="JSON lines with text.")],
    before: Annotated[Path | None, typer.Option(help="Checkout of an earlier build.")] = None,
    gguf: Annotated[str, typer.Option(help="The same policy for llama.cpp, if it is installed.")] = "",
    count: Annotated[int, typer.Option(help="Texts.")] = 512,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 2,
    dtype: Annotated[str, typer.Option(help="Number format of this build.")] = "bfloat16",
    queries: Annotated[bool, typer.Option("--queries", help="Single queries alone, into a file of their own.")] = False,
    way: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure, print, and keep the rows."""
    if way:
        typer.echo(json.dumps(_WAYS[way.split()[0]](model, _read(texts, count), dtype, gguf, way)))
        return
    rows: list[dict[str, Any]] = []
    for name in WAYS:
        if ("before" in name and before is None) or ("llama" in name and not gguf):
            continue
        if queries and not name.startswith("query"):
            continue
        place = before if "before" in name else None
        rows.append({"way": name, **_child(name, model, texts, count, threads, dtype, gguf, place)})
        Console().print(rows[-1])
    by = {row["way"]: row for row in rows}
    ratios = {}
    for label, key, a, b in (
        ("rationales: this over before", "rationale_texts_per_s", "this", "before"),
        ("rationales: this over straightforward", "rationale_texts_per_s", "this", "straightforward"),
        ("text alone: this over a bare loop", "text_tokens_per_s", "this", "bare"),
        ("text alone: this over before", "text_tokens_per_s", "this", "before"),
    ):
        if key in by.get(a, {}) and key in by.get(b, {}):
            ratios[label] = round(by[a][key] / by[b][key], 2)
    for name in ("query", "query llama-cpp"):
        if name in by and "query before" in by:
            ratios[f"{name}: before over this"] = round(by["query before"]["median_s"] / by[name]["median_s"], 2)
    Console().print(ratios)
    path = write_result(
        "cpu", rows, file="cpu-queries" if queries else "cpu", count=count, threads=threads, dtype=dtype, ratios=ratios
    )
    Console().print(f"Rows in {path}")


def _child(
    way: str, model: str, texts: Path, count: int, threads: int, dtype: str, gguf: str, place: Path | None
) -> dict[str, Any]:
    """Run one way in a process of its own, with the build of `place`, if one is given, before this one's."""
    own = Path(__file__).parents[1]
    folders = [*([str(place)] if place else [str(own.parent)]), str(own)]
    command = [sys.executable, __file__, model, "--texts", str(texts), "--count", str(count), "--dtype", dtype]
    found = subprocess.run(
        [*command, "--gguf", gguf, "--way", way],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    row: dict[str, Any] = json.loads(found.stdout.strip().splitlines()[-1])
    return row


def _read(path: Path, count: int) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line, _ in zip(lines, range(count), strict=False)]


def _embedder(model: str, dtype: str, way: str, **options: Any) -> Any:
    from grace_retrieval import GraceEmbedder

    kwargs: dict[str, Any] = {} if "before" in way or "llama" in way else {"model_kwargs": {"dtype": dtype}}
    return GraceEmbedder(model, cache=None, on_truncation="ignore", max_seq_length=512, **kwargs, **options)


def _encode(model: str, texts: list[str], dtype: str, gguf: str, way: str) -> dict[str, Any]:
    embedder = _embedder(model, dtype, way, max_new_tokens=BUDGET)
    embedder.encode_document(texts[:2])
    tokens = sum(map(len, embedder.tokenizer(texts, add_special_tokens=False)["input_ids"]))
    start = time.perf_counter()
    embedder.encode_document(texts, rationale=False)
    alone = time.perf_counter() - start
    start = time.perf_counter()
    embedder.encode_document(texts)
    written = time.perf_counter() - start
    return {
        "dtype": str(embedder.dtype).removeprefix("torch."),
        "text_tokens_per_s": round(tokens / alone, 1),
        "rationale_texts_per_s": round(len(texts) / written, 3),
        "text_s": round(alone, 1),
        "rationale_s": round(written, 1),
    }


def _straightforward(model: str, texts: list[str], dtype: str, gguf: str, way: str) -> dict[str, Any]:
    """`generate` in batches of 16, and a second pass; a quarter of the texts, as it takes so long."""
    from grace_benchmarks.encode.pipelines import Policy, straightforward
    from grace_retrieval.loading import end_tokens

    embedder = _embedder(model, dtype, way, max_new_tokens=BUDGET)
    pipeline = embedder.pipeline
    policy = Policy(
        model=pipeline.module,
        tokenizer=pipeline.tokenizer,
        end_tokens=end_tokens(pipeline.module, pipeline.tokenizer),
        forced=False,
    )
    part = texts[:: max(1, len(texts) // 128)]
    shown = pipeline.render(part, prompt=embedder.prompts["document"])
    requests = [text.request(BUDGET) for text in shown]
    start = time.perf_counter()
    straightforward(policy, requests)
    seconds = time.perf_counter() - start
    return {"dtype": dtype, "rationale_texts_per_s": round(len(part) / seconds, 3), "texts": len(part)}


def _bare(model: str, texts: list[str], dtype: str, gguf: str, way: str) -> dict[str, Any]:
    """A loop of `model(**batch)` over the same texts with their prompts, sorted by length."""
    import torch
    from transformers import AutoModelForCausalLM

    embedder = _embedder(model, dtype, way)
    shown = [text.input_ids for text in embedder.pipeline.render(texts, prompt=embedder.prompts["document"])]
    tokens = sum(map(len, embedder.tokenizer(texts, add_special_tokens=False)["input_ids"]))
    base = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval().base_model
    tokenizer = embedder.tokenizer
    rows = sorted(map(list, shown), key=len, reverse=True)
    with torch.inference_mode():
        base(torch.tensor([rows[-1]]))
        start = time.perf_counter()
        for first in range(0, len(rows), 8):
            padded = tokenizer.pad({"input_ids": rows[first : first + 8]}, padding_side="right", return_tensors="pt")
            base(**padded)
        seconds = time.perf_counter() - start
    return {"dtype": dtype, "text_tokens_per_s": round(tokens / seconds, 1), "text_s": round(seconds, 1)}


def _query(model: str, texts: list[str], dtype: str, gguf: str, way: str) -> dict[str, Any]:
    """One query at a time, with a rationale of up to 32 tokens; "tokens" is the mean of the first ten."""
    options: dict[str, Any] = {"max_new_tokens": QUERY_BUDGET}
    if "llama" in way:
        model, options = gguf, {**options, "engine": "llama-cpp"}
    embedder = _embedder(model, dtype, way, **options)
    queries = [text.split(". ")[0] for text in texts[:QUERIES]]
    embedder.encode_query(queries[0])
    seconds = []
    for query in queries:
        start = time.perf_counter()
        embedder.encode_query([query])
        seconds.append(time.perf_counter() - start)
    ordered = sorted(seconds)
    tokens = [len(row.token_ids) for row in embedder.rationales(queries[:10], "query")]
    return {
        "dtype": dtype if not ({"before", "llama-cpp"} & set(way.split())) else way.split()[-1],
        "median_s": round(statistics.median(ordered), 3),
        "p95_s": round(ordered[int(0.95 * (len(ordered) - 1))], 3),
        "tokens": round(statistics.mean(tokens), 1),
        "queries": len(queries),
    }


_WAYS = {"this": _encode, "before": _encode, "straightforward": _straightforward, "bare": _bare, "query": _query}


if __name__ == "__main__":
    typer.run(main)
