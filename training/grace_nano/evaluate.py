"""Evaluation of a finished model through the stock classes: format of rationales, and held-out perplexity."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from grace_nano.cleaning import normalize_spaces
from grace_nano.recipe import Recipe
from grace_nano.sources import read_arxiv
from grace_nano.tokenizer import THINK_CLOSE, THINK_OPEN
from grace_training.health import perplexity

__all__ = ["evaluate", "format_rates", "generate_rationales"]

_LOG = logging.getLogger(__name__)


def evaluate(recipe: Recipe, model_folder: Path, output: Path, reference: Path | None = None) -> None:
    """Check a model on fixed held-out rows and write the result as JSON.

    Args:
        recipe: The recipe; its `evaluation` part names the numbers of rows.
        model_folder: Folder of the model and its tokenizer.
        output: JSON file to write.
        reference: The same model with float32 weights, to measure what storing bfloat16 costs.
    """
    torch.set_num_threads(recipe.training.threads)
    options = recipe.evaluation
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    model.eval()
    test = read_arxiv(recipe.data, "test")
    abstracts = [normalize_spaces(text) for text in test["abstract"]]
    groups: dict[str, tuple[str, list[str]]] = {
        "arxiv_test_abstracts": ("document", abstracts[: options.abstracts]),
        "arxiv_test_titles": ("query", list(test["title"][: options.titles])),
    }
    for name in ("nfcorpus", "covidqa"):
        groups[f"{name}_queries"] = ("query", _queries(recipe.data, name, options.queries))
    result: dict[str, Any] = {"format": {}}
    for name, (role, texts) in groups.items():
        rationales = generate_rationales(
            model, tokenizer, recipe.prompts[role], texts, options.max_new_tokens, options.batch_size
        )
        result["format"][name] = format_rates(rationales, tokenizer.eos_token)
        _LOG.info("%s %s", name, result["format"][name])
    indices = list(range(0, len(abstracts), options.sample_step))
    samples = generate_rationales(
        model,
        tokenizer,
        recipe.prompts["document"],
        [abstracts[index] for index in indices],
        options.max_new_tokens,
        options.batch_size,
    )
    result["samples"] = [
        {
            "index": index,
            "id": str(test["id"].iloc[index]),
            "title": str(test["title"].iloc[index]),
            "rationale": text,
        }
        for index, text in zip(indices, samples, strict=True)
    ]
    dev = read_arxiv(recipe.data, "dev").head(options.perplexity_rows)
    texts = [f"{row.title}\n\n{row.abstract}" for row in dev.itertuples()]
    for dtype in (torch.float32, torch.bfloat16):
        label = f"dev_perplexity_{str(dtype).removeprefix('torch.')}"
        result[label] = perplexity(model.to(dtype), tokenizer, texts, options.batch_size)
        _LOG.info("%s %s", label, result[label])
    if reference is not None:
        exact: Any = AutoModelForCausalLM.from_pretrained(reference, dtype=torch.float32)
        exact.eval()
        result["dev_perplexity_float32_weights"] = perplexity(exact, tokenizer, texts, options.batch_size)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@torch.no_grad()
def generate_rationales(
    model: Any, tokenizer: Any, prompt: str, texts: list[str], max_new_tokens: int, batch_size: int
) -> list[str]:
    """Write one rationale a text, greedily.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer, padding on the left.
        prompt: System prompt.
        texts: The user's texts.
        max_new_tokens: Bound on new tokens.
        batch_size: Number of texts a batch; texts of similar length share one.

    Returns:
        The rationales in the order of `texts`, with the end token where the model wrote it.
    """
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "system", "content": prompt}, {"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for text in texts
    ]
    order = sorted(range(len(chats)), key=lambda index: len(chats[index]))
    rationales = [""] * len(chats)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        inputs = tokenizer([chats[index] for index in part], return_tensors="pt", padding=True)
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        for index, text in zip(part, tokenizer.batch_decode(new, skip_special_tokens=False), strict=True):
            rationales[index] = text.replace(tokenizer.pad_token, "")
    return rationales


def format_rates(rationales: list[str], end: str) -> dict[str, float]:
    """Shares of rationales that have the right form, end by themselves, and do not repeat themselves.

    Args:
        rationales: Decoded rationales, end token included.
        end: The end token.

    Returns:
        `closed`, `ended`, `exact_form` (`<think> ... </think> ...` and the end) and `looping`
        (a run of four words occurs three times) as shares, the number of rationales and their mean number
        of words.

    Example:
        >>> format_rates(["<think> a </think> b<END>", "<think> a"], "<END>")["closed"]
        0.5
    """
    total = len(rationales)
    closed = sum(text.count(THINK_CLOSE) == 1 for text in rationales)
    ended = sum(text.endswith(end) for text in rationales)
    exact = 0
    for text in rationales:
        thoughts, _, statement = text.removesuffix(end).partition(THINK_CLOSE)
        form = thoughts.startswith(f"{THINK_OPEN} ") and thoughts.removeprefix(THINK_OPEN).strip() != ""
        exact += form and statement.strip() != "" and text.endswith(end)
    looping = sum(_is_looping(text) for text in rationales)
    words = sum(len(text.split()) for text in rationales)
    return {
        "count": total,
        "closed": closed / total,
        "ended": ended / total,
        "exact_form": exact / total,
        "looping": looping / total,
        "mean_words": round(words / total, 1),
    }


def _is_looping(text: str) -> bool:
    words = text.split()
    runs = [tuple(words[index : index + 4]) for index in range(len(words) - 3)]
    return any(runs.count(run) >= 3 for run in set(runs))


def _queries(data: Path, name: str, count: int) -> list[str]:
    queries: list[str] = []
    wanted: set[str] | None = None
    qrels = data / "retrieval" / name / "qrels" / "test.tsv"
    if qrels.exists():
        wanted = {line.split("\t")[0] for line in qrels.read_text(encoding="utf-8").splitlines()[1:]}
    with (data / "retrieval" / name / "queries.jsonl").open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if wanted is None or str(row["_id"]) in wanted:
                queries.append(str(row["text"]))
            if len(queries) == count:
                break
    return queries
