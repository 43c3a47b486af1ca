"""Features: what `RationaleTransformer.preprocess` hands to `forward`, as tensors with one row a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grace_retrieval.engine import RationaleRequest
from grace_retrieval.prompt import RenderedText

__all__ = ["build_features", "pad_rows", "read_requests"]

_TO_BE_WRITTEN = -1  # rationale_length of a text whose rationale is not given


def pad_rows(rows: Sequence[Sequence[int]], pad_token: int) -> tuple[Tensor, Tensor]:
    """Pad token ids on the right.

    Args:
        rows: Token ids, one sequence a text.
        pad_token: Token to pad with.

    Returns:
        input_ids and attention_mask. Shape: (texts, tokens), int64.
    """
    width = max(map(len, rows), default=0)
    ids = torch.full((len(rows), width), pad_token)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[index, : len(row)] = 1
    return ids, mask


def build_features(
    rendered: Sequence[RenderedText], given: Sequence[tuple[int, ...] | None], pad_token: int
) -> dict[str, Any]:
    """Make features of rendered texts and their given rationales, if any.

    Args:
        rendered: Texts of one system prompt.
        given: Token ids of given rationales; None where the policy is to write one.
        pad_token: Token to pad with.

    Returns:
        input_ids and attention_mask of shape (texts, tokens); text_length and rationale_length of shape (texts,), where
        a text_length of 0 marks a blank text and a rationale_length of -1 a rationale to be written; prompt_length, an
        int.
    """
    ids, mask = pad_rows([text.input_ids + (own or ()) for text, own in zip(rendered, given, strict=True)], pad_token)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "text_length": torch.tensor([text.text_length for text in rendered]),
        "rationale_length": torch.tensor([_TO_BE_WRITTEN if own is None else len(own) for own in given]),
        "prompt_length": rendered[0].prefix_length if rendered else 0,
    }


def read_requests(features: Mapping[str, Any], max_new_tokens: int) -> list[RationaleRequest]:
    """Turn features back into what an engine takes.

    Args:
        features: From `build_features`, possibly sliced by rows or moved to a device.
        max_new_tokens: Budget of the rationales that are to be written.
    """
    prefix_length = int(torch.as_tensor(features["prompt_length"]).flatten()[0])
    lengths = features["attention_mask"].sum(1).tolist()
    requests = []
    for ids, length, own in zip(
        features["input_ids"].tolist(), lengths, features["rationale_length"].tolist(), strict=True
    ):
        prompt = length - max(own, 0)
        requests.append(
            RationaleRequest(
                input_ids=tuple(ids[:prompt]),
                prefix_length=prefix_length,
                max_new_tokens=max_new_tokens if own == _TO_BE_WRITTEN else 0,
                rationale_ids=None if own == _TO_BE_WRITTEN else tuple(ids[prompt:length]),
            )
        )
    return requests
