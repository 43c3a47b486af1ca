"""The slow and universal way: one text at a time, token by token, then a second forward pass over the result.

It asks nothing of an architecture beyond `forward`, so it serves models whose attention or state
`grace_retrieval.engines.ragged` cannot handle (ALiBi, soft-capping, state-space models), and it is the reference that
the one-pass engine is compared with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from grace_retrieval.engine import FinishReason, RationaleOutput, RationaleRequest, SamplingOptions
from grace_retrieval.engines.sampling import choose_tokens, uniform_numbers
from grace_retrieval.repetition import RepetitionWatch
from grace_retrieval.sentences import sentence_watch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["pool_tokens", "run_plain"]


def pool_tokens(model: PreTrainedModel, tokens: tuple[int, ...], prefix_length: int) -> Tensor:
    """Mean of the last hidden states behind the prefix, by one plain forward pass. Shape: (hidden,), float32."""
    ids = torch.tensor([tokens], device=model.device)
    hidden: Tensor = model.base_model(input_ids=ids).last_hidden_state
    return hidden[0, prefix_length:].float().mean(0)


@torch.inference_mode()
def run_plain(
    model: PreTrainedModel,
    request: RationaleRequest,
    sampling: SamplingOptions,
    end_tokens: frozenset[int],
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> RationaleOutput:
    """Run one request with the model's own cache and two passes."""
    written: list[int] = []
    reason: FinishReason = "given"
    end_token: int | None = None
    if request.rationale_ids is None and request.max_new_tokens:
        reason = "length"
        uniforms = uniform_numbers(sampling, request)
        watch = RepetitionWatch() if sampling.stop_repeats else None
        sentences = sentence_watch(tokenizer, sampling.max_sentences)
        state: dict[str, Any] = {}
        fed = torch.tensor([request.input_ids], device=model.device)
        for place in range(request.max_new_tokens):
            output = model(input_ids=fed, use_cache=True, **state)
            draw = None if uniforms is None else uniforms[place : place + 1]
            token = choose_tokens(output.logits[0, -1:], sampling, draw)[0]
            if token in end_tokens:
                reason, end_token = "stop", token
                break
            if sentences is not None and sentences.ends(token):
                reason = "stop"
                break
            written.append(token)
            if watch is not None and (start := watch.add(token)) is not None:
                reason, written = "repeat", written[:start]
                break
            # Each kind of model names its state in its own way; one that keeps none is fed everything again.
            state = {name: output[name] for name in ("past_key_values", "cache_params") if output.get(name) is not None}
            fed = torch.tensor([[token] if state else [*request.input_ids, *written]], device=model.device)
    rationale = tuple(written) if request.rationale_ids is None else request.rationale_ids
    vector = pool_tokens(model, request.input_ids + rationale, request.prefix_length)
    return RationaleOutput(token_ids=rationale, finish_reason=reason, vector=vector.cpu().numpy(), end_token=end_token)
