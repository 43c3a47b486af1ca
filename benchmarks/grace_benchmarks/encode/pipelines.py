"""The two ways from requests to vectors that are compared: the straightforward pipeline and the one-pass engine.

The straightforward pipeline: stock `generate` in batches of 16 in input order, detokenise, tokenise again, a second
full forward pass with `output_hidden_states=True`, masked mean.

The policy "random" has about 50M random parameters, and its rationales end when they are told to. A token is a word, so
that tokenising again gives the same tokens and the vectors can be compared. With a real model tokenising the written
rationale again may give other tokens, and then the straightforward pipeline embeds something slightly different.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
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

from grace_retrieval import DOCUMENT_PROMPT, GraceEmbedder, RationaleRequest
from grace_retrieval.engines.transformers import TransformersEngine
from grace_retrieval.loading import end_tokens

__all__ = [
    "Policy",
    "one_pass",
    "random_policy",
    "random_requests",
    "real_policy",
    "render",
    "silence_specials",
    "straightforward",
    "word_tokenizer",
]

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
    model = Qwen2ForCausalLM(config)
    silence_specials(model)
    return model.eval(), word_tokenizer(VOCABULARY)


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer of one word a token, so that tokenising again gives the same tokens."""
    words = Tokenizer(
        models.WordLevel({"<pad>": PAD, "<end>": END, **{f"w{i}": i for i in range(2, vocabulary)}}, unk_token="w2")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>", padding_side="left")


@torch.no_grad()
def silence_specials(model: PreTrainedModel) -> None:
    """Give padding and end logits of 0, so that no pipeline writes them of its own accord."""
    embeddings: Any = model.get_input_embeddings()
    embeddings.weight[: END + 1] = 0


def random_requests(texts: int, max_new_tokens: int, seed: int) -> list[RationaleRequest]:
    """Random texts of 20-300 tokens behind one prefix, with rationales of an eighth of the budget up to all of it."""
    choose = random.Random(seed)

    def words(count: int) -> tuple[int, ...]:
        return tuple(choose.randrange(3, VOCABULARY) for _ in range(count))

    prefix, suffix = words(PREFIX), words(5)
    return [
        RationaleRequest(
            input_ids=prefix + words(choose.randint(20, 300)) + suffix,
            prefix_length=PREFIX,
            max_new_tokens=choose.randint(max_new_tokens // 8, max_new_tokens),
        )
        for _ in range(texts)
    ]


class EndAfter(LogitsProcessor):
    """Forces the end token once a row has as many new tokens as it is allowed."""

    def __init__(self, prompt_length: int, allowed: list[int], device: torch.device) -> None:
        self.prompt_length = prompt_length
        self.allowed = torch.tensor(allowed, device=device)

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
        ).to(model.device)

    vectors = []
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        prompts = [str(tokenizer.decode(list(request.input_ids))) for request in batch]
        inputs = tokenize(prompts)
        length = inputs["input_ids"].shape[1]
        ends = [EndAfter(length, [r.max_new_tokens for r in batch], model.device)] if policy.forced else []
        most = max(r.max_new_tokens for r in batch)
        whole = inputs
        if most:
            generated = model.generate(  # type: ignore[operator]
                **inputs,
                max_new_tokens=most + policy.forced,
                do_sample=False,
                logits_processor=LogitsProcessorList(ends),
            )
            rationales = tokenizer.batch_decode(generated[:, length:], skip_special_tokens=True)
            space = " " if policy.forced else ""
            whole = tokenize([f"{p}{space}{r}" for p, r in zip(prompts, rationales, strict=True)])
        hidden = model(**whole, output_hidden_states=True).hidden_states[-1]
        mask = whole["attention_mask"].clone()
        mask[mask.cumsum(1) <= batch[0].prefix_length] = 0
        vectors.append((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
    return torch.cat(vectors).float().cpu().numpy()


def one_pass(engine: TransformersEngine, requests: list[RationaleRequest]) -> npt.NDArray[np.float32]:
    """Our engine. Returns vectors of shape (texts, hidden)."""
    outputs = dict(engine.run(requests))
    return np.stack([outputs[index].vector for index in range(len(requests))])


def random_policy(seed: int) -> Policy:
    """A random policy of about 50M parameters, and a tokenizer of one word a token."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, tokenizer = build_policy()
    return Policy(model=model, tokenizer=tokenizer, end_tokens=[], forced=True)


def real_policy(embedder: GraceEmbedder) -> Policy:
    """The policy of an embedder."""
    pipeline = embedder.pipeline
    return Policy(
        model=pipeline.module,
        tokenizer=pipeline.tokenizer,
        end_tokens=sorted(end_tokens(pipeline.module, pipeline.tokenizer)),
        forced=False,
    )


def render(embedder: GraceEmbedder, texts: Sequence[str], max_new_tokens: int) -> list[RationaleRequest]:
    """Requests for documents."""
    pipeline = embedder.pipeline
    rendered = pipeline.prompt(embedder.prompts.get("document") or DOCUMENT_PROMPT).render(
        list(texts), max_length=pipeline.options.max_seq_length
    )
    return [
        RationaleRequest(input_ids=text.input_ids, prefix_length=text.prefix_length, max_new_tokens=max_new_tokens)
        for text in rendered
    ]
