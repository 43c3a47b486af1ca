"""Reading without writing: texts alone, texts with given rationales, and texts that are their own (echo).

Nothing is decoded, so no keys and values are needed afterwards and the model's own forward pass will do: rows are
padded behind, where causal attention never looks, and start behind the keys and values of the shared prefix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from grace_retrieval.engine import RationaleOutput, RationaleRequest
from grace_retrieval.features import pad_rows
from grace_retrieval.threads import share_cores

__all__ = ["READ_TOKENS", "read"]

READ_TOKENS = {"cpu": 2048, "cuda": 16_384}
"""Aim for the tokens of a pass: large enough for full matrix speed, small enough to stay in the CPU's caches."""

Prefix = Sequence[tuple[Tensor, Tensor]]
"""Keys and values of each layer. Shape of each: (key_value_heads, prefix_length, head_dim)."""


def read(
    model: PreTrainedModel,
    requests: Sequence[RationaleRequest],
    prefix: Prefix | None,
    *,
    most_tokens: int,
    counts: Counter[str],
) -> Iterator[tuple[int, RationaleOutput]]:
    """Pool texts, and the rationales that they come with.

    Args:
        model: The policy, in evaluation mode.
        requests: Texts with the same system prefix, longest first; nothing is to be written about any.
        prefix: Keys and values of the system prefix, or None if every row has to run it.
        most_tokens: Aim for the tokens of a pass; a longer text is run alone.
        counts: Gets the passes under "forward_passes".

    Yields:
        Place of a request in `requests`, and its output.
    """
    behind = requests[0].prefix_length if prefix else 0
    rows = [request.input_ids[behind:] + (request.rationale_ids or ()) for request in requests]
    first = 0
    while first < len(rows):
        last = first + max(1, most_tokens // len(rows[first]))
        ids, mask = (tensor.to(model.device) for tensor in pad_rows(rows[first:last], 0))
        cache = None
        if prefix:
            cache = DynamicCache(config=model.config.get_text_config())
            for layer, (keys, values) in enumerate(prefix):
                shape = (len(ids), *keys.shape)
                cache.update(keys.expand(shape), values.expand(shape), layer)
        share_cores(model.device.type)
        states = model.base_model(input_ids=ids, past_key_values=cache, use_cache=cache is not None).last_hidden_state
        counts["forward_passes"] += 1
        mask[:, : requests[0].prefix_length - behind] = 0
        weights = mask / mask.sum(1, keepdim=True)
        with torch.autocast(model.device.type, enabled=False):  # a trainer's, whose mean would be one of bfloat16
            vectors = torch.einsum("rt,rtd->rd", weights.float(), states.float()).cpu().numpy()
        for place, vector in enumerate(vectors, first):
            rationale = requests[place].rationale_ids or ()
            yield place, RationaleOutput(token_ids=rationale, finish_reason="given", vector=vector, end_token=None)
        first = last
