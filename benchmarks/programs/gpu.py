"""Everything that wants a GPU, in one command of at most five minutes: engine, equality with the CPU, training, FAISS.

    PYTHONPATH=benchmarks python -m programs.gpu --out gpu.jsonl
    PYTHONPATH=benchmarks python -m programs.gpu --out cpu.jsonl --device cpu   # the same on a small policy

Policies are random and have the shapes of SmolLM2-135M and Qwen2.5-1.5B, so nothing is fetched. Each part is a process
of its own, and each row is written when it is known: a run that ends early leaves what it measured. A part that has
not run says so in a row. With --device cpu the sizes are small, to see that everything works.
"""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from grace_benchmarks.encode.pipelines import Policy, one_pass, silence_specials, straightforward, word_tokenizer
from grace_benchmarks.record import RowFile, row_key
from grace_retrieval import RationaleRequest
from grace_retrieval.engines.transformers import TransformersEngine

PREFIX, BUDGET = 30, 64
STOCK_ROWS = 128


@dataclasses.dataclass(frozen=True)
class Size:
    """A policy's shape, and how much is measured with it: texts, those of them that stock gets, pairs of an update."""

    config: type[LlamaConfig | Qwen2Config]
    shape: dict[str, Any]
    texts: int
    stock: int
    pairs: int = 0


def _shape(hidden: int, inner: int, layers: int, heads: int, shared: int, vocabulary: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "vocab_size": vocabulary,
    }


SIZES = {
    "small": Size(LlamaConfig, _shape(64, 128, 2, 4, 2, 8000), texts=24, stock=24, pairs=4),
    "135M": Size(LlamaConfig, _shape(576, 1536, 30, 9, 3, 49_152), texts=2000, stock=512, pairs=256),
    "1.5B": Size(Qwen2Config, _shape(1536, 8960, 28, 12, 2, 151_936), texts=600, stock=128),
}
VECTORS = {"cpu": 20_000, "cuda": 1_000_000}
SECONDS = {"engine 135M": 80, "engine 1.5B": 70, "equality": 40, "training": 80, "faiss": 60}
"""Most seconds of a part; what is not named has a minute."""


def main(
    out: Annotated[Path, typer.Option(help="JSON lines that rows are appended to.")] = Path("gpu.jsonl"),
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    seconds: Annotated[int, typer.Option(help="Most seconds of everything.")] = 300,
    part: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Measure part after part."""
    if part:
        for row in _part(part, device):
            typer.echo(json.dumps(row))
        return
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("torch sees no GPU here; --device cpu tries everything at small sizes.")
    end, rows = time.monotonic() + seconds, RowFile(out)
    begun = time.strftime("%Y-%m-%dT%H:%M:%S")
    sizes = ["135M", "1.5B"] if device == "cuda" else ["small"]
    for name in [*(f"engine {size}" for size in sizes), "equality", "training", "faiss"]:
        about = {"kind": "gpu", "begun": begun, "device": device, "part": name}
        for number, row in enumerate(_child(name, device, min(end - time.monotonic(), SECONDS.get(name, 60)))):
            Console().print({"part": name, **row})
            rows.append({"key": row_key({**about, "number": number}), **about, **row})


def _child(name: str, device: str, seconds: float) -> Iterator[dict[str, Any]]:
    """Rows of a part that runs in a process of its own, and one that says why where it did not end."""
    if seconds < 1:
        yield {"status": "not run: no time was left"}
        return
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, "-m", "programs.gpu", "--device", device, "--part", name]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        end = time.monotonic() + seconds
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        # A trainer writes lines of its own, and a killed process may end in the middle of one.
        for line in process.stdout or ():
            if line.startswith('{"') and line.endswith("}\n"):
                yield json.loads(line)
        status = process.wait()
        timer.cancel()
        if status < 0 and time.monotonic() >= end:
            yield {"status": f"stopped after {seconds:.0f} s"}
        elif status:
            errors.seek(0)
            yield {"status": f"failed: {' '.join(errors.read().strip().splitlines()[-1:])}"}


def _part(name: str, device: str) -> Iterator[dict[str, Any]]:
    kind, _, size = name.partition(" ")
    standard = "135M" if device == "cuda" else "small"
    parts: dict[str, Callable[[str, str], Iterator[dict[str, Any]]]] = {
        "engine": engine,
        "equality": equality,
        "training": training,
        "faiss": faiss_search,
    }
    for row in parts[kind](size or standard, device):
        on = torch.cuda.get_device_name() if device == "cuda" else "cpu, at a small size: says only that this works"
        yield {"status": "ok", "on": on, **row}


def engine(size: str, device: str) -> Iterator[dict[str, Any]]:
    """Texts per second of stock `generate` with a second pass, of the engine, and of single texts."""
    policy = _policy(size, device, torch.bfloat16)
    requests = _requests(SIZES[size].texts, policy.model.config.vocab_size)
    straightforward(policy, requests[:2], STOCK_ROWS)
    some = requests[: SIZES[size].stock]
    seconds, peak = _taken(device, lambda: straightforward(policy, some, STOCK_ROWS))
    stock = len(some) / seconds
    yield {"size": size, "way": f"stock, {STOCK_ROWS} rows", "texts_per_s": round(stock, 2), "peak_gib": peak}
    for way, draft in (("engine", True), ("engine without drafts", False)):
        runs = TransformersEngine(policy.model, end_tokens=[], draft=draft)
        one_pass(runs, requests[:2])
        seconds, peak = _taken(device, lambda runs=runs: one_pass(runs, requests))  # type: ignore[misc]
        rate = len(requests) / seconds
        yield {
            "size": size,
            "way": way,
            "texts_per_s": round(rate, 2),
            "over_stock": round(rate / stock, 2),
            "forward_passes": runs.statistics()["forward_passes"],
            "peak_gib": peak,
        }
        seconds, _ = _taken(device, lambda runs=runs: [one_pass(runs, [text]) for text in requests[:4]])  # type: ignore[misc]
        yield {"size": size, "way": f"{way}, single texts", "ms_a_token": round(1000 * seconds / 4 / BUDGET, 2)}


def equality(size: str, device: str) -> Iterator[dict[str, Any]]:
    """Vectors and rationales on the device beside those of the same weights in float32 on the CPU."""
    policy = _policy(size, "cpu", torch.float32)
    requests = _requests(8, policy.model.config.vocab_size)
    truth = dict(TransformersEngine(policy.model, end_tokens=[]).run(requests))
    given = [
        dataclasses.replace(request, rationale_ids=truth[place].token_ids) for place, request in enumerate(requests)
    ]
    for dtype in (torch.float32, torch.bfloat16):
        runs = TransformersEngine(_moved(policy.model, device, dtype), end_tokens=[])
        written, read = dict(runs.run(requests)), dict(runs.run(given))
        cosines = [_cosine(read[place].vector, truth[place].vector) for place in truth]
        yield {
            "size": size,
            "dtype": str(dtype).removeprefix("torch."),
            "same_rationales": sum(written[place].token_ids == truth[place].token_ids for place in truth),
            "of": len(truth),
            "lowest_cosine_with_given_rationales": round(min(cosines), 7),
        }


def training(size: str, device: str) -> Iterator[dict[str, Any]]:
    """An update of texts alone, and one with two rollouts of each document."""
    from grace_retrieval import GraceEmbedder
    from programs.step import training_step

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = GraceEmbedder("grace-nano", cache=None, device="cpu").tokenizer
        tokenizer.save_pretrained(folder)
        model = _model(size, max(len(tokenizer), SIZES[size].shape["vocab_size"]))
        _moved(model, "cpu", torch.bfloat16).save_pretrained(folder)
        for written in (False, True):
            embedder = GraceEmbedder(
                folder,
                cache=None,
                device=device,
                model_kwargs={"dtype": "bfloat16"},
                max_seq_length=224,
                max_new_tokens=32,
                on_truncation="ignore",
            )
            yield {
                "size": size,
                **training_step(embedder, pairs=SIZES[size].pairs, steps=2 if device == "cuda" else 1, written=written),
            }


def faiss_search(size: str, device: str) -> Iterator[dict[str, Any]]:
    """Searches of an inverted-list index on everything that this FAISS can search on."""
    from grace_benchmarks.ann.devices import devices, import_faiss, on_device

    faiss, chance = import_faiss(), np.random.default_rng(0)
    vectors = chance.standard_normal((VECTORS[device], 128), dtype=np.float32)
    queries = vectors[:2000] + chance.standard_normal((2000, 128), dtype=np.float32)
    index = faiss.index_factory(128, "IVF256,Flat")
    index.train(vectors[:10_000])
    index.add(vectors)
    found = {}
    for place in devices():
        copy = on_device(index, place)
        copy.nprobe = 16
        copy.search(queries[:10], 10)
        start = time.perf_counter()
        _, found[place] = copy.search(queries, 10)
        yield {
            "where": place,
            "vectors": len(vectors),
            "queries_per_s": round(len(queries) / (time.perf_counter() - start)),
            "same_as_cpu": round(float((found[place] == found["cpu"]).mean()), 4),
        }
    if "gpu" not in devices():
        yield {"status": "not run: this FAISS has no GPU, or sees none"}


def _model(size: str, vocabulary: int) -> PreTrainedModel:
    torch.manual_seed(0)
    config = SIZES[size].config(
        **{**SIZES[size].shape, "vocab_size": vocabulary}, max_position_embeddings=2048, tie_word_embeddings=True
    )
    model: PreTrainedModel = LlamaForCausalLM(config) if isinstance(config, LlamaConfig) else Qwen2ForCausalLM(config)
    silence_specials(model)
    model.eval()
    return model


def _moved(model: Any, device: str, dtype: torch.dtype) -> PreTrainedModel:
    moved: PreTrainedModel = model.to(device, dtype)
    return moved


def _policy(size: str, device: str, dtype: torch.dtype) -> Policy:
    vocabulary = SIZES[size].shape["vocab_size"]
    model = _moved(_model(size, vocabulary), device, dtype)
    return Policy(model=model, tokenizer=word_tokenizer(vocabulary), end_tokens=[], forced=True)


def _requests(count: int, vocabulary: int) -> list[RationaleRequest]:
    """Texts of 20 to 300 tokens behind a prefix, each with a rationale of the whole budget."""
    choose = random.Random(0)

    def words(length: int) -> tuple[int, ...]:
        return tuple(choose.randrange(3, vocabulary) for _ in range(length))

    prefix = words(PREFIX)
    return [
        RationaleRequest(input_ids=prefix + words(choose.randint(20, 300)), prefix_length=PREFIX, max_new_tokens=BUDGET)
        for _ in range(count)
    ]


def _taken(device: str, work: Callable[[], Any]) -> tuple[float, float | None]:
    """Seconds, and the most GiB that the GPU held."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, round(torch.cuda.max_memory_allocated() / 2**30, 2) if device == "cuda" else None


def _cosine(one: Any, other: Any) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


if __name__ == "__main__":
    typer.run(main)
