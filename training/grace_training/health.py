"""Measures of what goes wrong in training: collapse, reward hacking and forgetting. Pure functions."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from grace_retrieval import Rationale

__all__ = [
    "compression_ratio",
    "distinct_2",
    "effective_rank",
    "format_share",
    "mean_cosine",
    "perplexity",
    "uniformity",
]

Vectors = npt.NDArray[np.float32]


def mean_cosine(vectors: Vectors) -> float:
    """Mean cosine of all pairs: 1 if every text has the same embedding.

    Args:
        vectors: Unit vectors of unrelated texts. Shape: (n, d), n of 2 or more.
    """
    n = len(vectors)
    total = float(np.square(vectors.sum(0, dtype=np.float64)).sum())
    return (total - n) / (n * (n - 1))


def uniformity(vectors: Vectors) -> float:
    """Log of the mean Gaussian potential of all pairs, t = 2 (Wang and Isola, arXiv 2005.10242): lower is more even.

    Args:
        vectors: Unit vectors. Shape: (n, d), n of 2 or more.
    """
    cosines = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)].astype(np.float64)
    return float(np.log(np.exp(-2 * (2 - 2 * cosines)).mean()))


def effective_rank(vectors: Vectors) -> float:
    """Exponential of the entropy of the normalised singular values (Roy and Vetterli, EUSIPCO 2007).

    Args:
        vectors: Shape: (n, d).

    Returns:
        Between 1 (all on a line) and min(n, d).
    """
    values = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
    shares = values[values > 1e-12] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def distinct_2(token_ids: Sequence[Sequence[int]]) -> float:
    """Mean share of different pairs among the neighbouring tokens of a rationale: low if it repeats itself.

    Args:
        token_ids: Rationales; those of fewer than two tokens do not count.
    """
    shares = [len(set(pairwise(ids))) / (len(ids) - 1) for ids in token_ids if len(ids) > 1]
    return float(np.mean(shares)) if shares else 1.0


def compression_ratio(texts: Sequence[str]) -> float:
    """Bytes of all rationales together over their bytes under zlib: high if they say the same again and again.

    Args:
        texts: Rationales.
    """
    raw = "\n".join(texts).encode()
    return len(raw) / len(zlib.compress(raw)) if raw else 1.0


def format_share(rationales: Sequence[Rationale]) -> float:
    """Share of rationales that reason inside <think></think> and then state something.

    Args:
        rationales: Rationales.
    """
    good = [bool(r.reasoning and r.summary) and not r.truncated for r in rationales]
    return float(np.mean(good)) if good else 1.0


@torch.no_grad()
def perplexity(model: Any, tokenizer: Any, texts: Sequence[str], batch_size: int = 16) -> dict[str, float]:
    """Perplexity a token, and bits a byte of UTF-8, of plain texts without any prompt.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        texts: Held-out texts.
        batch_size: Texts of a forward pass; texts of similar length share one.

    Returns:
        `perplexity`, `bits_per_byte` and the number of `tokens`.
    """
    training = model.training
    model.eval()
    total, tokens = 0.0, 0
    ordered = sorted(texts, key=len)
    for start in range(0, len(ordered), batch_size):
        part = ordered[start : start + batch_size]
        inputs = tokenizer(part, return_tensors="pt", padding=True, padding_side="right").to(model.device)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        losses = cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        total += float((losses * mask[:, 1:]).sum())
        tokens += int(mask[:, 1:].sum())
    model.train(training)
    size = sum(len(text.encode("utf-8")) for text in texts)
    return {
        "perplexity": round(math.exp(min(total / tokens, 700.0)), 3),  # a destroyed policy is beyond floats
        "bits_per_byte": round(total / math.log(2) / size, 4),
        "tokens": tokens,
    }
