"""Choosing the next token: greedily, or by sampling that does not depend on the batch."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from grace_retrieval.engine import RationaleRequest, SamplingOptions

__all__ = ["choose_tokens", "uniform_numbers"]


def uniform_numbers(options: SamplingOptions, request: RationaleRequest) -> npt.NDArray[np.float64] | None:
    """Return the random numbers of one text, one for each token of its rationale; None when greedy.

    They depend on the seed, the prompt and the number of the sample alone, so a text's sampled rationale is the same in
    any batch.

    Args:
        options: Sampling options.
        request: The prompt, the number of the sample, and how many tokens the rationale may have.

    Returns:
        Numbers in [0, 1). Shape: (max_new_tokens,), float64.
    """
    if options.greedy:
        return None
    digest = hashlib.blake2b(np.asarray(request.input_ids, dtype="<u4").tobytes(), digest_size=8)
    seed = [options.seed, int.from_bytes(digest.digest(), "little"), *([request.sample] if request.sample else [])]
    return np.random.default_rng(seed).random(request.max_new_tokens)


def choose_tokens(logits: Tensor, options: SamplingOptions, uniforms: npt.NDArray[np.float64] | None) -> list[int]:
    """Choose one token for each row of `logits`.

    Args:
        logits: Shape: (tokens, vocabulary).
        options: Greedy or sampling.
        uniforms: Random numbers for inverse-transform sampling. Shape: (tokens,); None when greedy.

    Returns:
        Token ids, one a row.
    """
    if uniforms is None:
        return [int(token) for token in logits.argmax(-1).tolist()]
    warpers = LogitsProcessorList([TemperatureLogitsWarper(options.temperature)])
    if options.top_k:
        warpers.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        warpers.append(TopPLogitsWarper(options.top_p))
    scores = warpers(torch.empty(0, dtype=torch.long), logits.float())  # type: ignore[arg-type]
    cumulative = scores.double().softmax(-1).cumsum(-1)
    # Scaled by the last entry, which rounding leaves a little off 1; `right` skips tokens of probability 0.
    draw = torch.as_tensor(uniforms, device=logits.device)[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, draw, right=True)[:, 0]
    # NaN would lead behind the vocabulary; what it does to the vector is found there.
    return [int(token) for token in tokens.clamp(max=logits.shape[-1] - 1).tolist()]
