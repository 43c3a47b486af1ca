"""How much faster is the one-pass engine than the straightforward pipeline, and are the vectors the same?

    python -m grace_benchmarks.engine

The straightforward pipeline: stock `generate` in batches of 16 in input order, detokenise, tokenise again, a second
full forward pass with `output_hidden_states=True`, masked mean. Both run a random Qwen2-shaped policy of about 50M
parameters over 128 texts of 20-300 tokens whose rationales end after 16-128 tokens, on the same threads, in turns in
one process. A token is a word, so that tokenising again gives the same tokens and the vectors can be compared.

With `--nano`, grace-nano is run over unseen abstracts and titles. There tokenising the written rationale again may give
other tokens, so the straightforward pipeline embeds something slightly different: that is its difference.
"""

from __future__ import annotations

import random
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
import typer
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from grace_benchmarks.record import Timing, measure, write_result
from grace_retrieval import DOCUMENT_PROMPT, QUERY_PROMPT, GraceEmbedder, RationaleRequest
from grace_retrieval.engines.transformers import TransformersEngine
from grace_retrieval.loading import end_tokens

VOCABULARY = 32_000
PAD, END = 0, 1
PREFIX = 40


def build_policy() -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    """A random policy of about 50M parameters, and a tokenizer of one word a token."""
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.05,
        eos_token_id=END,
        pad_token_id=PAD,
        bos_token_id=None,
    )
    words = Tokenizer(
        models.WordLevel({"<pad>": PAD, "<end>": END, **{f"w{i}": i for i in range(2, VOCABULARY)}}, unk_token="w2")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():  # logits of 0, so that neither pipeline writes these of its own accord
        model.model.embed_tokens.weight[: END + 1] = 0
    model.eval()
    return model, tokenizer


def build_requests(texts: int, seed: int) -> list[RationaleRequest]:
    """Random texts of 20-300 tokens behind one prefix, with rationales of 16-128 tokens."""
    choose = random.Random(seed)

    def words(count: int) -> tuple[int, ...]:
        return tuple(choose.randrange(3, VOCABULARY) for _ in range(count))

    prefix, suffix = words(PREFIX), words(5)
    return [
        RationaleRequest(
            input_ids=prefix + words(choose.randint(20, 300)) + suffix,
            prefix_length=PREFIX,
            max_new_tokens=choose.randint(16, 128),
        )
        for _ in range(texts)
    ]


class EndAfter(LogitsProcessor):
    """Forces the end token once a row has as many new tokens as it is allowed."""

    def __init__(self, prompt_length: int, allowed: list[int]) -> None:
        self.prompt_length = prompt_length
        self.allowed = torch.tensor(allowed)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Mask everything but the end token in rows that are through, and the end token in the others."""
        over = input_ids.shape[1] - self.prompt_length >= self.allowed
        scores[:, END] = torch.where(over, float("inf"), float("-inf"))
        return scores


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A model to run both pipelines with. `forced`: rationales end by budget, not of their own accord."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    end_tokens: list[int]
    forced: bool


@torch.inference_mode()
def straightforward(policy: Policy, requests: list[RationaleRequest], batch_size: int = 16) -> npt.NDArray[np.float32]:
    """The pipeline anybody would write first. Returns vectors of shape (texts, hidden)."""
    model, tokenizer = policy.model, policy.tokenizer
    tokenizer.padding_side = "left"

    def tokenize(texts: list[str]) -> Any:
        return tokenizer(
            texts, return_tensors="pt", padding=True, return_token_type_ids=False, add_special_tokens=False
        )

    vectors = []
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        prompts = [str(tokenizer.decode(list(request.input_ids))) for request in batch]
        inputs = tokenize(prompts)
        length = inputs["input_ids"].shape[1]
        ends = [EndAfter(length, [r.max_new_tokens for r in batch])] if policy.forced else []
        generated = model.generate(  # type: ignore[operator]
            **inputs,
            max_new_tokens=max(r.max_new_tokens for r in batch) + policy.forced,
            do_sample=False,
            logits_processor=LogitsProcessorList(ends),
        )
        rationales = tokenizer.batch_decode(generated[:, length:], skip_special_tokens=True)
        space = " " if policy.forced else ""
        whole = tokenize([f"{prompt}{space}{rationale}" for prompt, rationale in zip(prompts, rationales, strict=True)])
        hidden = model(**whole, output_hidden_states=True).hidden_states[-1]
        mask = whole["attention_mask"].clone()
        mask[mask.cumsum(1) <= batch[0].prefix_length] = 0
        vectors.append((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
    return torch.cat(vectors).float().numpy()


def one_pass(engine: TransformersEngine, requests: list[RationaleRequest]) -> npt.NDArray[np.float32]:
    """Our engine. Returns vectors of shape (texts, hidden)."""
    outputs = dict(engine.run(requests))
    return np.stack([outputs[index].vector for index in range(len(requests))])


def compare(what: str, policy: Policy, batches: list[list[RationaleRequest]], repeats: int) -> list[dict[str, Any]]:
    """Run the pipelines in turns; one row each."""
    # Engines live as long as a model does: its self-check and the shared prefix come once, before the clock starts.
    engines = {
        name: TransformersEngine(policy.model, end_tokens=policy.end_tokens, draft=draft)
        for name, draft in (("one pass", True), ("one pass, no drafts", False))
    }
    for engine in engines.values():
        one_pass(engine, batches[0][:1])
    straightforward(policy, batches[0][:1])
    times: dict[str, list[Timing]] = {name: [] for name in ("straightforward", *engines)}
    before = {name: Counter(engine.statistics()) for name, engine in engines.items()}
    difference = 0.0
    for _ in range(repeats):
        with measure() as timing:
            expected = [straightforward(policy, batch) for batch in batches]
        times["straightforward"].append(timing)
        for name, engine in engines.items():
            with measure() as timing:
                found = [one_pass(engine, batch) for batch in batches]
            times[name].append(timing)
            difference = max(difference, *(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True)))
    counts = {name: Counter(engine.statistics()) - before[name] for name, engine in engines.items()}
    base = times["straightforward"]
    return [
        {
            "what": what,
            "pipeline": name,
            "wall_seconds": [round(t.wall, 3) for t in taken],
            "cpu_seconds": [round(t.cpu, 3) for t in taken],
            "ratio_wall": _ratio([t.wall for t in base], [t.wall for t in taken]),
            "ratio_cpu": _ratio([t.cpu for t in base], [t.cpu for t in taken]),
            "seconds_per_call": round(statistics.median(t.wall for t in taken) / len(batches), 4),
            "new_tokens": counts[name]["new_tokens"] // repeats if name in counts else None,
            "forward_passes": counts[name]["forward_passes"] // repeats if name in counts else None,
            "largest_difference": difference,
        }
        for name, taken in times.items()
    ]


def nano_requests(texts: int, data: Path) -> tuple[Policy, list[RationaleRequest], list[RationaleRequest]]:
    """grace-nano, unseen abstracts as documents and their titles as queries."""
    writer = GraceEmbedder("grace-nano", cache=None).writer
    papers = pq.read_table(data / "arxiv" / "test.parquet", columns=["title", "abstract"]).slice(0, texts).to_pylist()

    def render(system_prompt: str, column: str) -> list[RationaleRequest]:
        rendered = writer.prompt(system_prompt).render(
            [row[column] for row in papers], max_length=writer.max_seq_length
        )
        return [
            RationaleRequest(
                input_ids=text.input_ids, prefix_length=text.prefix_length, max_new_tokens=writer.max_new_tokens
            )
            for text in rendered
        ]

    documents, queries = render(DOCUMENT_PROMPT, "abstract"), render(QUERY_PROMPT, "title")
    policy = Policy(
        model=writer.model,
        tokenizer=writer.tokenizer,
        end_tokens=end_tokens(writer.model, writer.tokenizer),
        forced=False,
    )
    return policy, documents, queries


def main(
    texts: Annotated[int, typer.Option(help="Number of texts.")] = 128,
    repeats: Annotated[int, typer.Option(help="Runs of each, in turns.")] = 3,
    singles: Annotated[int, typer.Option(help="Texts run one at a time, for the latency of a query.")] = 8,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 2,
    seed: Annotated[int, typer.Option(help="Seed of the policy and of the texts.")] = 0,
    nano: Annotated[bool, typer.Option("--nano", help="Run grace-nano over real texts instead.")] = False,
    data: Annotated[Path, typer.Option(help="Real texts for grace-nano.")] = Path("../shared/data"),
) -> None:
    """Compare the engine with the straightforward pipeline."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    if nano:
        policy, documents, queries = nano_requests(texts, data)
        many, few = f"grace-nano, {texts} abstracts", "grace-nano, single queries"
    else:
        model, tokenizer = build_policy()
        policy = Policy(model=model, tokenizer=tokenizer, end_tokens=[], forced=True)
        documents = queries = build_requests(texts, seed)
        many, few = f"random policy, {texts} texts", "random policy, single texts"
    rows = compare(many, policy, [documents], repeats)
    rows += compare(few, policy, [[query] for query in queries[:singles]], repeats)
    parameters = sum(p.numel() for p in policy.model.parameters())
    settings = {"texts": texts, "repeats": repeats, "threads": threads, "seed": seed, "parameters": parameters}
    path = write_result("engine", rows, file="engine_nano" if nano else "engine", **settings)
    table = Table("what", "pipeline", "s a call", "ratio CPU", "ratio wall", "max difference")
    for row in rows:
        table.add_row(
            row["what"],
            row["pipeline"],
            f"{row['seconds_per_call']:.3f}",
            f"{row['ratio_cpu']:.2f}",
            f"{row['ratio_wall']:.2f}",
            f"{row['largest_difference']:.1e}",
        )
    console = Console()
    console.print(table)
    console.print(f"Written to {path.name}")


def _ratio(base: list[float], taken: list[float]) -> float:
    return round(statistics.median(base) / statistics.median(taken), 2)


if __name__ == "__main__":
    typer.run(main)
